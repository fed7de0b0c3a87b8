package postrider

import (
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/postrider/postrider/pkg/boot"
	"github.com/postrider/postrider/pkg/store"
	"github.com/postrider/postrider/services/bounce"
)

func tlsCommand() *cobra.Command {
	return group(&cobra.Command{
		Use:   "tls",
		Short: "What is known of TLS at other mail systems: broken hosts, policies, reports",
	}, tlsBrokenCommand(), tlsForgetCommand(), tlsPoliciesCommand(), tlsReportsCommand(), tlsRecordCommand())
}

// brokenLine is an address whose TLS is broken, in JSON.
type brokenLine struct {
	Host     string     `json:"host"`
	Address  string     `json:"address"`
	Fault    string     `json:"fault"`
	Evidence string     `json:"evidence"`
	Times    int        `json:"times"`
	FailedAt *time.Time `json:"failed_at"`
	Until    *time.Time `json:"until"`
}

func tlsBrokenCommand() *cobra.Command {
	var format string
	c := &cobra.Command{
		Use:   "broken",
		Short: "List the addresses whose TLS was seen to be broken",
		Args:  exactly(),
		RunE: func(c *cobra.Command, _ []string) error {
			return withStore(c.Context(), func(db *store.Store) error {
				all, err := db.BrokenTLS(c.Context())
				if err != nil {
					return err
				}
				lines := make([]brokenLine, len(all))
				for i, b := range all {
					lines[i] = brokenLine{b.Host, b.Address.String(), b.Fault, b.Evidence, b.Times, moment(b.FailedAt), moment(b.Until)}
				}
				return printAs(format, c.OutOrStdout(), lines, func() error {
					t := newTable(c.OutOrStdout(), "HOST", "ADDRESS", "FAULT", "TIMES", "FORGOTTEN IN", "EVIDENCE")
					for _, b := range all {
						t.row(clean(b.Host), b.Address.String(), b.Fault, fmt.Sprint(b.Times), span(time.Until(b.Until)), clean(b.Evidence))
					}
					return t.flush()
				})
			})
		},
	}
	outputFlag(c, &format)
	return c
}

func tlsForgetCommand() *cobra.Command {
	var all bool
	c := &cobra.Command{
		Use:   "forget [HOST]",
		Short: "Have TLS tried again at a host; all workers know within 5 seconds",
		Args: func(_ *cobra.Command, args []string) error {
			if len(args) > 1 || all == (len(args) == 1) {
				return usageError{errors.New("name one HOST, or give --all")}
			}
			return nil
		},
		RunE: func(c *cobra.Command, args []string) error {
			host := ""
			if !all {
				host = args[0]
			}
			return withStore(c.Context(), func(db *store.Store) error {
				n, err := db.ForgetBrokenTLS(c.Context(), host)
				if err != nil {
					return err
				}
				_, err = fmt.Fprintf(c.OutOrStdout(), "addresses forgotten: %d\n", n)
				return err
			})
		},
	}
	c.Flags().BoolVar(&all, "all", false, "every host")
	return c
}

// policyLine is the MTA-STS policy of a domain in JSON.
type policyLine struct {
	Domain    string     `json:"domain"`
	ID        string     `json:"id"`
	Mode      string     `json:"mode"`
	MX        []string   `json:"mx"`
	Policy    []string   `json:"policy"`
	ExpiresAt *time.Time `json:"expires_at"`
}

func tlsPoliciesCommand() *cobra.Command {
	var format string
	var limit int
	c := &cobra.Command{
		Use:   "policies",
		Short: "List the MTA-STS policies that are kept",
		Args:  exactly(),
		RunE: func(c *cobra.Command, _ []string) error {
			return withStore(c.Context(), func(db *store.Store) error {
				all, err := db.STSPolicies(c.Context(), limit)
				if err != nil {
					return err
				}
				lines := make([]policyLine, len(all))
				for i, p := range all {
					lines[i] = policyLine{p.Domain, p.ID, p.Mode, p.MX, p.Text, moment(p.ExpiresAt)}
				}
				return printAs(format, c.OutOrStdout(), lines, func() error {
					t := newTable(c.OutOrStdout(), "DOMAIN", "MODE", "ID", "ENDS IN", "MX")
					for _, p := range all {
						t.row(clean(p.Domain), p.Mode, clean(p.ID), span(time.Until(p.ExpiresAt)), clean(fmt.Sprint(p.MX)))
					}
					return t.flush()
				})
			})
		},
	}
	c.Flags().IntVarP(&limit, "limit", "n", 1000, "at most so many, by domain")
	outputFlag(c, &format)
	return c
}

// reportLine is a report on TLS in JSON.
type reportLine struct {
	Day     string     `json:"day"`
	Domain  string     `json:"domain"`
	RUA     string     `json:"rua"`
	Tries   int        `json:"tries"`
	NextAt  *time.Time `json:"next_at"`
	SentAt  *time.Time `json:"sent_at"`
	Trouble string     `json:"trouble,omitempty"`
}

func tlsReportsCommand() *cobra.Command {
	var format string
	var limit int
	c := &cobra.Command{
		Use:   "reports",
		Short: "List the reports on TLS (RFC 8460) of the last week",
		Args:  exactly(),
		RunE: func(c *cobra.Command, _ []string) error {
			return withStore(c.Context(), func(db *store.Store) error {
				all, err := db.TLSReports(c.Context(), limit)
				if err != nil {
					return err
				}
				lines := make([]reportLine, len(all))
				for i, r := range all {
					lines[i] = reportLine{r.Day.Format(time.DateOnly), string(r.Domain), r.RUA, r.Tries, moment(r.NextAt), moment(r.SentAt), r.Trouble}
				}
				return printAs(format, c.OutOrStdout(), lines, func() error {
					t := newTable(c.OutOrStdout(), "DAY", "DOMAIN", "TO", "STATE", "TRIES", "TROUBLE")
					for i, r := range all {
						state := "given up"
						switch {
						case !r.SentAt.IsZero():
							state = "sent " + clock(r.SentAt)
						case !r.NextAt.IsZero():
							state = "due " + clock(r.NextAt)
						}
						t.row(lines[i].Day, clean(lines[i].Domain), clean(r.RUA), state, fmt.Sprint(r.Tries), clean(r.Trouble))
					}
					return t.flush()
				})
			})
		},
	}
	c.Flags().IntVarP(&limit, "limit", "n", 1000, "at most so many, latest first")
	outputFlag(c, &format)
	return c
}

func tlsRecordCommand() *cobra.Command {
	return &cobra.Command{
		Use:   "record",
		Short: "Print the DNS record that receivers verify reports by mail with",
		Long: `Prints the TXT record for POSTRIDER_TLSRPT_DKIM_KEY, as a line of a zone file.
It reads the same variables as the bounce service.`,
		Args: exactly(),
		RunE: func(c *cobra.Command, _ []string) error {
			var cfg bounce.TLSReportConfig
			if err := boot.Load(nil, &cfg); err != nil {
				return err
			}
			signer, err := cfg.Signer()
			if err != nil {
				return err
			}
			if signer == nil {
				return errors.New("POSTRIDER_TLSRPT_CONTACT and POSTRIDER_TLSRPT_DKIM_KEY are not both set: no report is signed")
			}
			name, value, err := signer.Record()
			if err != nil {
				return err
			}
			if why := signer.Weakness(); why != "" {
				fmt.Fprintln(c.ErrOrStderr(), "warning:", why)
			}
			_, err = fmt.Fprintf(c.OutOrStdout(), "%s. IN TXT %s\n", name, strings.Join(quoted(value), " "))
			return err
		},
	}
}

// quoted cuts a text into the strings of a TXT record: RFC 1035 §3.3.14.
func quoted(text string) (all []string) {
	for ; len(text) > 255; text = text[255:] {
		all = append(all, `"`+text[:255]+`"`)
	}
	return append(all, `"`+text+`"`)
}
