package postrider

import (
	"fmt"
	"io"
	"strings"

	"github.com/spf13/cobra"

	"github.com/postrider/postrider/pkg/mail"
	"github.com/postrider/postrider/pkg/smtp"
	"github.com/postrider/postrider/pkg/store"
	"github.com/postrider/postrider/services/resolver"
)

// explanation is what the routing table says of one recipient, in JSON.
type explanation struct {
	Recipient string        `json:"recipient"`
	Domain    string        `json:"domain"`
	Rules     []matchedRule `json:"rules"` // the first one counts
}

type matchedRule struct {
	routeLine
	Why  string `json:"why"`
	Goes string `json:"goes"`
}

func routeExplainCommand() *cobra.Command {
	var f matchFlags
	var format string
	c := &cobra.Command{
		Use:   "explain USER@DOMAIN",
		Short: "Say which rule counts for a recipient, and why",
		Args:  exactly("USER@DOMAIN"),
		RunE: func(c *cobra.Command, args []string) error {
			q, err := f.query(args[0])
			if err != nil {
				return err
			}
			return withStore(c.Context(), func(db *store.Store) error {
				rules, err := db.Routing(c.Context())
				if err != nil {
					return err
				}
				e := explanation{Recipient: args[0], Domain: string(q.Domain), Rules: []matchedRule{}}
				for rule := range resolver.NewTable(rules).Matches(q) {
					l := newRouteLine(*rule)
					e.Rules = append(e.Rules, matchedRule{l, why(rule.Match), l.goes()})
				}
				return printAs(format, c.OutOrStdout(), e, func() error { return e.print(c.OutOrStdout()) })
			})
		},
	}
	f.add(c)
	c.Flags().Lookup("from").Usage = "`reverse-path` of the message; <> or nothing for reports"
	c.Flags().Lookup("tenant").Usage = "`tenant` of the message"
	outputFlag(c, &format)
	return c
}

// query returns what rules are looked up by.
func (f *matchFlags) query(recipient string) (resolver.Query, error) {
	path, rest, err := smtp.ParseForwardPath("<"+recipient+">", true)
	if err != nil || rest != "" {
		return resolver.Query{}, usageError{fmt.Errorf("recipient %q, want user@example.com", recipient)}
	}
	domain, err := mail.ParseDomain(path.DomainText())
	if err != nil {
		return resolver.Query{}, usageError{err}
	}
	sender, _, err := smtp.ParseReversePath("<"+strings.Trim(f.sender, "<>")+">", true)
	if err != nil {
		return resolver.Query{}, usageError{fmt.Errorf("reverse-path %q, want user@example.com or <>", f.sender)}
	}
	return resolver.Query{Domain: domain, Sender: sender, Tenant: f.tenant}, nil
}

// why says by what a rule matches.
func why(m store.RouteMatch) string {
	words := []string{"the recipient's domain is " + m.Domain}
	switch {
	case m.Domain == "*":
		words[0] = "it is for all recipients"
	case strings.HasPrefix(m.Domain, "*."):
		words[0] = "the recipient's domain is below " + m.Domain[2:]
	}
	switch {
	case m.Sender == "<>":
		words = append(words, "the reverse-path is null")
	case strings.Contains(m.Sender, "@"):
		words = append(words, "the reverse-path is "+m.Sender)
	case strings.HasPrefix(m.Sender, "*."):
		words = append(words, "the sender's domain is below "+m.Sender[2:])
	case m.Sender != "":
		words = append(words, "the sender's domain is "+m.Sender)
	}
	if m.Tenant != "" {
		words = append(words, "the tenant is "+m.Tenant)
	}
	return strings.Join(words, ", ")
}

func (e explanation) print(w io.Writer) error {
	if len(e.Rules) == 0 {
		return said(w, "no rule is for %s: its MX records show the way\n", clean(e.Recipient))
	}
	for i, r := range e.Rules {
		head := "counts"
		if i > 0 {
			head = "passed over, less specific"
		}
		m := store.RouteMatch{Domain: r.Domain, Sender: r.Sender, Tenant: r.Tenant}
		if err := said(w, "rule for %s: %s\n  why   %s\n", m, head, r.Why); err != nil {
			return err
		}
		if r.TLS != "" {
			r.Goes += ", TLS " + r.TLS
		}
		if err := said(w, "  goes  %s\n", r.Goes); err != nil {
			return err
		}
	}
	return nil
}
