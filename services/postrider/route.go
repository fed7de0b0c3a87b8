package postrider

import (
	"cmp"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/postrider/postrider/pkg/mail"
	"github.com/postrider/postrider/pkg/retry"
	"github.com/postrider/postrider/pkg/store"
)

// routeLine is a rule of the routing table in JSON.
type routeLine struct {
	Domain     string        `json:"domain"`
	Sender     string        `json:"sender,omitempty"`
	Tenant     string        `json:"tenant,omitempty"`
	Hosts      []string      `json:"hosts"`
	TLS        string        `json:"tls,omitempty"`
	Credential string        `json:"credential,omitempty"`
	Pool       string        `json:"pool,omitempty"`
	Fallback   *fallbackLine `json:"fallback,omitempty"`
	Hold       string        `json:"hold,omitempty"`
	Discard    string        `json:"discard,omitempty"`
	UpdatedAt  *time.Time    `json:"updated_at,omitempty"`
}

type fallbackLine struct {
	Hosts      []string `json:"hosts"`
	TLS        string   `json:"tls"`
	Credential string   `json:"credential,omitempty"`
	Tries      int16    `json:"tries,omitempty"`
	After      string   `json:"after,omitempty"`
}

func newRouteLine(r store.RoutingRule) routeLine {
	l := routeLine{
		Domain: r.Match.Domain, Sender: r.Match.Sender, Tenant: r.Match.Tenant, Hosts: append([]string{}, r.Hosts...),
		TLS: string(r.TLS), Credential: r.Credential, Pool: r.Pool, Hold: r.Hold, Discard: r.Discard, UpdatedAt: moment(r.UpdatedAt),
	}
	if f := r.Fallback; len(f.Hosts) > 0 {
		l.Fallback = &fallbackLine{Hosts: f.Hosts, TLS: string(f.TLS), Credential: f.Credential, Tries: f.Tries}
		if f.After > 0 {
			l.Fallback.After = span(f.After)
		}
	}
	return l
}

// goes says in words what a rule does.
func (l routeLine) goes() string {
	switch {
	case l.Discard != "":
		return "discarded: " + clean(l.Discard)
	case l.Hold != "" && len(l.Hosts) == 0:
		return "held: " + clean(l.Hold)
	}
	var words []string
	if l.Hold != "" {
		words = append(words, "held: "+clean(l.Hold)+"; then")
	}
	words = append(words, way(l.Hosts, l.Credential))
	if l.Pool != "" {
		words = append(words, "from pool "+l.Pool)
	}
	if f := l.Fallback; f != nil {
		words = append(words, "; "+f.due()+" "+way(f.Hosts, f.Credential))
		if f.TLS != "" {
			words[len(words)-1] += ", TLS " + f.TLS
		}
	}
	return strings.ReplaceAll(strings.Join(words, " "), " ;", ";")
}

func way(hosts []string, credential string) string {
	text := "by MX records"
	if len(hosts) > 0 {
		text = strings.Join(hosts, " ")
	}
	if credential != "" {
		text += " as " + credential
	}
	return text
}

// due says when a fallback is taken.
func (f *fallbackLine) due() string {
	var when []string
	if f.Tries > 0 {
		when = append(when, fmt.Sprintf("%d tries", f.Tries))
	}
	if f.After != "" {
		when = append(when, f.After)
	}
	return "after " + strings.Join(when, " or ")
}

func routeCommand() *cobra.Command {
	parent := &cobra.Command{
		Use:   "route",
		Short: "The routing table: smart hosts, fallbacks, pools, holds",
		Long: `A rule says where the mail of some recipients, senders or tenants goes instead
of the way that its MX records show, or that it is held or discarded. The most
specific rule counts; docs/routes.md has the order. A change holds at once, for
mail that waits too.

  postrider route set example.com smart1.example.net:587 smart2.example.net:587 --tls verify
  postrider route set example.com 'a.example.net:587*3+b.example.net:587'
  postrider route set '*' smtps://relay.example.net --credential relay --tenant acme
  postrider route set example.com --fallback smart.example.net:587 --fallback-tries 3
  postrider route set '*' --from news.example.com --pool bulk
  postrider route set example.org --hold "being moved, ticket 4711"
  postrider route explain user@example.com --tenant acme`,
	}
	return group(parent, routeSetCommand(), routeListCommand(), routeRemoveCommand(), routeExplainCommand(), relayCredentialCommand())
}

func routeListCommand() *cobra.Command {
	var format string
	c := &cobra.Command{
		Use:   "list",
		Short: "Print the routing table",
		Args:  exactly(),
		RunE: func(c *cobra.Command, _ []string) error {
			return withStore(c.Context(), func(db *store.Store) error {
				rules, err := db.Routing(c.Context())
				if err != nil {
					return err
				}
				lines := make([]routeLine, len(rules))
				for i, r := range rules {
					lines[i] = newRouteLine(r)
				}
				return printAs(format, c.OutOrStdout(), lines, func() error {
					t := newTable(c.OutOrStdout(), "DOMAIN", "FROM", "TENANT", "TLS", "GOES")
					for _, l := range lines {
						t.row(l.Domain, orDash(l.Sender), orDash(l.Tenant), orDash(l.TLS), l.goes())
					}
					return t.flush()
				})
			})
		},
	}
	outputFlag(c, &format)
	return c
}

func orDash(text string) string {
	if text == "" {
		return "-"
	}
	return text
}

// matchFlags say which mail a rule is for, beside the recipient's domain.
type matchFlags struct{ sender, tenant string }

func (f *matchFlags) add(c *cobra.Command) {
	c.Flags().StringVar(&f.sender, "from", "", "only for this `reverse-path`: user@example.com, example.com, *.example.com, or <> for reports")
	c.Flags().StringVar(&f.tenant, "tenant", "", "only for this `tenant`")
}

// match returns what a rule is for.
func (f *matchFlags) match(domain string) (store.RouteMatch, error) {
	m := store.RouteMatch{Domain: strings.ToLower(domain), Sender: strings.ToLower(f.sender), Tenant: f.tenant}
	var err error
	if domain != "*" {
		if m.Domain, err = pattern(domain); err != nil {
			return m, usageError{err}
		}
	}
	if local, name, addressed := cutLast(m.Sender, "@"); addressed {
		// A U-label is looked up as the client wrote it.
		if local == "" || name == "" {
			return m, usageError{fmt.Errorf("reverse-path %q, want user@example.com", f.sender)}
		}
	} else if m.Sender != "" && m.Sender != "<>" {
		if m.Sender, err = pattern(f.sender); err != nil {
			return m, usageError{err}
		}
	}
	return m, nil
}

func cutLast(s, sep string) (before, after string, found bool) {
	i := strings.LastIndex(s, sep)
	if i < 0 {
		return s, "", false
	}
	return s[:i], s[i+len(sep):], true
}

// pattern checks "example.com" and "*.example.com".
func pattern(text string) (string, error) {
	name, wild := strings.CutPrefix(text, "*.")
	domain, err := mail.ParseDomain(name)
	if err != nil {
		return "", err
	}
	if wild {
		return "*." + string(domain), nil
	}
	return string(domain), nil
}

// routeFlags are what a rule says.
type routeFlags struct {
	matchFlags
	rule          store.RoutingRule
	tls, fallback string
	tries         int
}

func routeSetCommand() *cobra.Command {
	var f routeFlags
	c := &cobra.Command{
		Use:   "set DOMAIN [HOST[:PORT]...]",
		Short: "Add a rule for a recipient domain (example.com, *.example.com, or * for all), or replace it",
		Long: `Hosts are tried in order; "+" joins hosts that share the load, by the weight
behind "*": a.example.net*3+b.example.net. smtps:// before the first host is TLS
from the start (port 465), lmtp:// is LMTP (port 24). Without hosts MX records
show the way, and the rule says the rest.`,
		Args: atLeast("DOMAIN"),
		RunE: func(c *cobra.Command, args []string) error {
			rule, err := f.made(args)
			if err != nil {
				return err
			}
			return withStore(c.Context(), func(db *store.Store) error {
				n, err := db.SetRoute(c.Context(), rule)
				if errors.Is(err, store.ErrNotFound) {
					return fmt.Errorf("there is no credential %s, see postrider route credential list", cmp.Or(rule.Credential, rule.Fallback.Credential))
				}
				if err != nil {
					return err
				}
				if err := warnOfPool(c, db, rule.Pool); err != nil {
					return err
				}
				goes := newRouteLine(rule).goes()
				if rule.Discard == "" && rule.Hold == "" {
					goes = "goes " + strings.Replace("by "+goes, "by by ", "by ", 1)
				} else {
					goes = "is " + goes
				}
				return said(c.OutOrStdout(), "%s %s; %d waiting recipients are routed again\n", rule.Match, goes, n)
			})
		},
	}
	f.add(c)
	flags := c.Flags()
	flags.StringVar(&f.tls, "tls", "", "TLS `level`: none, may, encrypt, verify or dane (default: verify with a credential, else may; by MX records as shaping says)")
	flags.StringVar(&f.rule.Credential, "credential", "", "authenticate by this `name`; see postrider route credential")
	flags.StringVar(&f.rule.Pool, "pool", "", "`name` of the pool of source addresses")
	flags.StringArrayVar(&f.rule.Fallback.Hosts, "fallback", nil, "`host` for mail that has been tried for long; repeatable, in order")
	flags.IntVar(&f.tries, "fallback-tries", 0, "fall back after so many tries (default 3 unless --fallback-after is given)")
	flags.TextVar((*retry.Duration)(&f.rule.Fallback.After), "fallback-after", retry.Duration(0), "fall back this `time` after acceptance, such as 90m or 1d")
	flags.StringVar(&f.fallback, "fallback-tls", "", "TLS `level` of the fallback")
	flags.StringVar(&f.rule.Fallback.Credential, "fallback-credential", "", "authenticate at the fallback by this `name`")
	flags.StringVar(&f.rule.Hold, "hold", "", "hold recipients, for this `reason`, until they are released")
	flags.StringVar(&f.rule.Discard, "discard", "", "discard recipients, for this `reason`; their senders hear nothing")
	return c
}

// said prints a line.
func said(w io.Writer, format string, args ...any) error {
	_, err := fmt.Fprintf(w, format, args...)
	return err
}

// defaultFallbackTries is when a fallback is taken if nobody said when.
const defaultFallbackTries = 3

// made returns the rule that the command line describes.
func (f *routeFlags) made(args []string) (rule store.RoutingRule, err error) {
	rule = f.rule
	if rule.Match, err = f.match(args[0]); err != nil {
		return rule, err
	}
	rule.Hosts, rule.TLS = args[1:], mail.TLSLevel(f.tls)
	rule.Fallback.TLS, rule.Fallback.Tries = mail.TLSLevel(f.fallback), int16(min(f.tries, 1<<15-1))
	for _, hosts := range [][]string{rule.Hosts, rule.Fallback.Hosts} {
		if len(hosts) == 0 {
			continue
		}
		if _, err := mail.ParseSmartHosts(hosts); err != nil {
			return rule, usageError{fmt.Errorf("want HOST:PORT: %w", err)}
		}
	}
	for _, level := range []mail.TLSLevel{rule.TLS, rule.Fallback.TLS} {
		if level != "" && !slices.Contains(mail.TLSLevels, level) {
			return rule, usageError{fmt.Errorf("TLS level %q, want one of %v", level, mail.TLSLevels)}
		}
	}
	fallsBack := len(rule.Fallback.Hosts) > 0
	if fallsBack && rule.Fallback.Tries == 0 && rule.Fallback.After == 0 {
		rule.Fallback.Tries = defaultFallbackTries
	}
	switch {
	case rule.Discard != "" && (rule.Hold != "" || len(rule.Hosts) > 0 || fallsBack):
		err = errors.New("what is discarded goes nowhere: --discard stands alone")
	case !fallsBack && (rule.Fallback.Tries > 0 || rule.Fallback.After > 0 || rule.Fallback.TLS != "" || rule.Fallback.Credential != ""):
		err = errors.New("a fallback wants --fallback HOST")
	case rule.Credential != "" && (len(rule.Hosts) == 0 || rule.TLS != "" && rule.TLS != mail.TLSVerify),
		rule.Fallback.Credential != "" && rule.Fallback.TLS != "" && rule.Fallback.TLS != mail.TLSVerify:
		err = errors.New("a credential is for named hosts, over verified TLS only")
	case len(rule.Hosts) == 0 && !fallsBack && rule.TLS == "" && rule.Pool == "" && rule.Hold == "" && rule.Discard == "":
		err = errors.New("say where mail goes: hosts, --fallback, --pool, --tls, --hold or --discard")
	}
	if err != nil {
		return rule, usageError{err}
	}
	return rule, nil
}

func routeRemoveCommand() *cobra.Command {
	var f matchFlags
	c := &cobra.Command{
		Use:     "remove DOMAIN",
		Aliases: []string{"delete"},
		Short:   "Take a rule out of the routing table: the next one counts, or MX records",
		Args:    exactly("DOMAIN"),
		RunE: func(c *cobra.Command, args []string) error {
			m, err := f.match(args[0])
			if err != nil {
				return err
			}
			return withStore(c.Context(), func(db *store.Store) error {
				n, err := db.DeleteRoute(c.Context(), m)
				if errors.Is(err, store.ErrNotFound) {
					return fmt.Errorf("%s is not in the routing table", m)
				}
				if err != nil {
					return err
				}
				return said(c.OutOrStdout(), "removed %s; %d waiting recipients are routed again\n", m, n)
			})
		},
	}
	f.add(c)
	return c
}
