package postrider

import (
	"errors"
	"fmt"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/postrider/postrider/pkg/mail"
	"github.com/postrider/postrider/pkg/store"
)

// measureLine is a measure in JSON.
type measureLine struct {
	ID       int64      `json:"id,omitempty"` // none: site resume ends it
	Kind     string     `json:"kind"`
	Site     string     `json:"site,omitempty"`
	Source   string     `json:"source,omitempty"`
	Tenant   string     `json:"tenant,omitempty"`
	Campaign string     `json:"campaign,omitempty"`
	Domain   string     `json:"domain,omitempty"`
	Key      string     `json:"key,omitempty"`
	Value    string     `json:"value,omitempty"`
	Until    *time.Time `json:"until"`
	By       string     `json:"by"`
	Reason   string     `json:"reason"`
}

func suspensionCommand() *cobra.Command {
	return group(&cobra.Command{
		Use:   "suspension",
		Short: "What automation and operators have ordered for a while",
		Long: `A suspension keeps the mail of a site, source, tenant or campaign, or of any
that has all of those given, waiting for a while. With --bounce it fails
instead. Rules of automation order the same, and set values of shaping. All
processes know within two seconds.

  postrider suspension add --site mx.example.com --source new-1 --for 2h --reason "blocked"
  postrider suspension add --tenant acme --for 1d --reason "complaints"
  postrider suspension cancel 17

Sites that were suspended by "postrider site suspend" have no ID here; they go
on by "postrider site resume".`,
	}, suspensionListCommand(), suspensionAddCommand(), suspensionCancelCommand())
}

func suspensionListCommand() *cobra.Command {
	var format string
	c := &cobra.Command{
		Use:   "list",
		Short: "List what holds now",
		Args:  exactly(),
		RunE: func(c *cobra.Command, _ []string) error {
			return withStore(c.Context(), func(db *store.Store) error {
				all, err := db.Suspensions(c.Context())
				if err != nil {
					return err
				}
				lines := make([]measureLine, len(all))
				for i, m := range all {
					lines[i] = measureLine{m.ID, string(m.Kind), string(m.Site), m.Source, m.Tenant, m.Campaign, string(m.Domain),
						m.Key, m.Value, moment(m.Until), m.By, m.Reason}
				}
				return printAs(format, c.OutOrStdout(), lines, func() error {
					t := newTable(c.OutOrStdout(), "ID", "KIND", "OF", "ENDS IN", "BY", "REASON")
					for i := range all {
						m := &all[i]
						kind := strings.TrimSpace(string(m.Kind) + " " + m.Key + " " + m.Value)
						id := fmt.Sprint(m.ID)
						if m.ID == 0 {
							id = "-" // postrider site resume ends it
						}
						t.row(id, clean(kind), clean(covered(m)), span(time.Until(m.Until)), clean(m.By), clean(m.Reason))
					}
					return t.flush()
				})
			})
		},
	}
	outputFlag(c, &format)
	return c
}

// covered says what a measure is about.
func covered(m *mail.Measure) string {
	var all []string
	for _, p := range [][2]string{{"site", string(m.Site)}, {"source", m.Source}, {"tenant", m.Tenant}, {"campaign", m.Campaign}, {"domain", string(m.Domain)}} {
		if p[1] != "" {
			all = append(all, p[0]+" "+p[1])
		}
	}
	return strings.Join(all, ", ")
}

func suspensionAddCommand() *cobra.Command {
	var m mail.Measure
	var site string
	var wait time.Duration
	var bounce bool
	c := &cobra.Command{
		Use:   "add",
		Short: "Keep some mail waiting for a while",
		Args:  exactly(),
		RunE: func(c *cobra.Command, _ []string) error {
			m.Kind, m.Site, m.By, m.Until = mail.MeasureSuspend, mail.Site(site), operator(), time.Now().Add(wait)
			if bounce {
				m.Kind = mail.MeasureBounce
			}
			switch {
			case covered(&m) == "":
				return usageError{errors.New("say whose mail: give at least one of --site, --source, --tenant, --campaign")}
			case m.Reason == "":
				return usageError{errors.New("--reason is missing: it is what others see")}
			}
			return withStore(c.Context(), func(db *store.Store) error {
				if err := db.Order(c.Context(), []mail.Measure{m}); err != nil {
					return err
				}
				_, err := fmt.Fprintf(c.OutOrStdout(), "%s of %s for %s\n", m.Kind, covered(&m), span(wait))
				return err
			})
		},
	}
	c.Flags().StringVar(&site, "site", "", "mail for this `site`")
	c.Flags().StringVar(&m.Source, "source", "", "mail that leaves from this `source`")
	c.Flags().StringVar(&m.Tenant, "tenant", "", "mail of this `tenant`")
	c.Flags().StringVar(&m.Campaign, "campaign", "", "mail of this `campaign`")
	forFlag(c, &wait)
	c.Flags().StringVar(&m.Reason, "reason", "", "why, for those who look later")
	c.Flags().BoolVar(&bounce, "bounce", false, "the mail fails instead of waiting")
	return c
}

func suspensionCancelCommand() *cobra.Command {
	return &cobra.Command{
		Use:   "cancel ID",
		Short: "End one early; what waited for its end is tried now",
		Args:  exactly("ID"),
		RunE: func(c *cobra.Command, args []string) error {
			id, err := strconv.ParseInt(args[0], 10, 64)
			if err != nil {
				return usageError{fmt.Errorf("id %q, want a number of suspension list", args[0])}
			}
			return withStore(c.Context(), func(db *store.Store) error {
				ended, err := db.CancelMeasure(c.Context(), id, operator())
				if err != nil {
					return err
				}
				if !ended {
					return fmt.Errorf("%d does not hold", id)
				}
				_, err = fmt.Fprintln(c.OutOrStdout(), "cancelled")
				return err
			})
		},
	}
}
