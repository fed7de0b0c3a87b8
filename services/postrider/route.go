package postrider

import (
	"errors"
	"fmt"
	"net"
	"strings"

	"github.com/spf13/cobra"

	"github.com/postrider/postrider/pkg/mail"
	"github.com/postrider/postrider/pkg/store"
)

// routeLine is a line of the routing table in JSON.
type routeLine struct {
	Domain string   `json:"domain"`
	Hosts  []string `json:"hosts"`
	TLS    string   `json:"tls"`
}

func routeCommand() *cobra.Command {
	var format, level string
	list := &cobra.Command{
		Use:   "list",
		Short: "Print the routing table",
		Args:  cobra.NoArgs,
		RunE: func(c *cobra.Command, _ []string) error {
			return withStore(c.Context(), func(db *store.Store) error {
				rules, err := db.Routing(c.Context())
				if err != nil {
					return err
				}
				lines := make([]routeLine, len(rules))
				for i, r := range rules {
					lines[i] = routeLine{r.Domain, r.Hosts, string(r.TLS)}
				}
				return printAs(format, c.OutOrStdout(), lines, func() error {
					t := newTable(c.OutOrStdout(), "DOMAIN", "TLS", "HOSTS")
					for _, l := range lines {
						t.row(l.Domain, l.TLS, strings.Join(l.Hosts, " "))
					}
					return t.flush()
				})
			})
		},
	}
	outputFlag(list, &format)
	set := &cobra.Command{
		Use:   "set DOMAIN HOST:PORT...",
		Short: "Send a domain (example.com, *.example.com, or * for all) by smart hosts, tried in order",
		Args:  cobra.MinimumNArgs(2),
		RunE: func(c *cobra.Command, args []string) error {
			rule := store.RoutingRule{Domain: args[0], Hosts: args[1:], TLS: mail.TLSLevel(level)}
			for _, host := range rule.Hosts {
				if _, _, err := net.SplitHostPort(host); err != nil {
					return usageError{fmt.Errorf("host %q, want HOST:PORT: %w", host, err)}
				}
			}
			return withStore(c.Context(), func(db *store.Store) error {
				n, err := db.SetRoute(c.Context(), rule)
				if err != nil {
					return err
				}
				_, err = fmt.Fprintf(c.OutOrStdout(), "%s goes by %s; %d waiting recipients are routed again\n",
					rule.Domain, strings.Join(rule.Hosts, " "), n)
				return err
			})
		},
	}
	set.Flags().StringVar(&level, "tls", string(mail.TLSMay), "none, may, encrypt or verify")
	remove := &cobra.Command{
		Use:   "delete DOMAIN",
		Short: "Take a domain out of the routing table: MX records decide again",
		Args:  exactly("DOMAIN"),
		RunE: func(c *cobra.Command, args []string) error {
			return withStore(c.Context(), func(db *store.Store) error {
				err := db.DeleteRoute(c.Context(), args[0])
				if errors.Is(err, store.ErrNotFound) {
					return fmt.Errorf("%s is not in the routing table", args[0])
				}
				if err != nil {
					return err
				}
				_, err = fmt.Fprintln(c.OutOrStdout(), "deleted", args[0])
				return err
			})
		},
	}
	return group(&cobra.Command{Use: "route", Short: "Show and change the routing table: domains that go by smart hosts"}, list, set, remove)
}
