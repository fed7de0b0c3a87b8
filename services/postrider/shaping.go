package postrider

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/user"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/postrider/postrider/pkg/boot"
	"github.com/postrider/postrider/pkg/mail"
	"github.com/postrider/postrider/pkg/shaping"
	"github.com/postrider/postrider/pkg/store"
	"github.com/postrider/postrider/services/resolver"
)

func shapingCommand() *cobra.Command {
	return group(&cobra.Command{
		Use:   "shaping",
		Short: "Limits, TLS, retries and automation by provider, domain and source",
		Long: `The shaping that holds is the presets, then POSTRIDER_SHAPING_FILE, then the
version that was applied last, each laid over those before. A version takes
effect on all processes within two seconds. docs/shaping.md has the grammar.`,
	}, shapingExplainCommand(), shapingValidateCommand(), shapingShowCommand(), shapingApplyCommand(), shapingHistoryCommand(), shapingRollbackCommand())
}

// shapingTexts returns the texts that hold, lowest first: of this process's
// environment, and of Postgres.
func shapingTexts(ctx context.Context, db *store.Store, cfg shaping.Config) ([]shaping.Text, error) {
	texts, err := cfg.Texts()
	if err != nil {
		return nil, err
	}
	v, err := db.Shaping(ctx, 0)
	if errors.Is(err, store.ErrNotFound) {
		return texts, nil
	}
	return append(texts, shaping.Text{From: fmt.Sprintf("version %d", v.Version), TOML: v.Text}), err
}

func shapingConfig() (shaping.Config, error) {
	var cfg shaping.Config
	err := boot.Load(nil, &cfg)
	return cfg, err
}

// shaped is the answer of shaping explain in JSON.
type shaped struct {
	Domain   string           `json:"domain"`
	Site     string           `json:"site"`
	Hosts    []string         `json:"hosts"`
	Routed   bool             `json:"routed,omitempty"`  // the hosts are those of the routing table
	Trouble  string           `json:"trouble,omitempty"` // why the hosts are not known
	Source   string           `json:"source,omitempty"`
	Provider string           `json:"provider,omitempty"`
	Slots    []int16          `json:"slots"`
	Next     []int16          `json:"next_slots,omitempty"`
	Values   []shaping.Origin `json:"values"`
	Shared   []shaping.Shared `json:"shared,omitempty"`
	Rules    []shapedRule     `json:"rules,omitempty"`
}

type shapedRule struct {
	Block   string   `json:"block"`
	Regex   []string `json:"regex"`
	Actions []string `json:"actions"`
	Trigger string   `json:"trigger"`
	For     string   `json:"for"`
}

func shapingExplainCommand() *cobra.Command {
	var format, source string
	c := &cobra.Command{
		Use:   "explain DOMAIN",
		Short: "Print every value for a domain, and which layer set it",
		Args:  exactly("DOMAIN"),
		RunE: func(c *cobra.Command, args []string) error {
			domain, err := mail.ParseDomain(args[0])
			if err != nil {
				return usageError{err}
			}
			return withStore(c.Context(), func(db *store.Store) error {
				e, err := explainShaping(c.Context(), db, domain, source)
				if err != nil {
					return err
				}
				return printAs(format, c.OutOrStdout(), e, func() error { return e.print(c.OutOrStdout()) })
			})
		},
	}
	outputFlag(c, &format)
	c.Flags().StringVar(&source, "source", "", "for mail that leaves from this `source`")
	return c
}

func explainShaping(ctx context.Context, db *store.Store, domain mail.Domain, source string) (shaped, error) {
	e := shaped{Domain: string(domain), Source: source, Hosts: []string{}}
	cfg, err := shapingConfig()
	if err != nil {
		return e, err
	}
	texts, err := shapingTexts(ctx, db, cfg)
	if err != nil {
		return e, err
	}
	s, _, err := shaping.Build(cfg, texts...)
	if err != nil {
		return e, err
	}
	measures, err := db.Measures(ctx)
	if err != nil {
		return e, err
	}
	sites, err := db.ShapingSites(ctx)
	if err != nil {
		return e, err
	}
	if s, err = s.With(measures, sites); err != nil {
		return e, err
	}
	hosts, site, err := e.find(ctx, db, domain)
	if err != nil {
		return e, err
	}
	if !e.Routed && len(hosts) > 0 {
		site = s.Site(domain, hosts, site)
	}
	for _, h := range hosts {
		e.Hosts = append(e.Hosts, h.Name)
	}
	q := shaping.Query{Domain: domain, Site: site, Hosts: hosts, Source: source}
	v := s.For(q)
	divisions, err := db.Divisions(ctx)
	if err != nil {
		return e, err
	}
	d := divisions.Of(site)
	e.Slots, e.Next = d.Slots, d.Next
	e.Site, e.Provider, e.Values, e.Shared = string(site), v.Provider, s.Explain(q), v.Shared
	for _, r := range v.Rules {
		x := shapedRule{Block: r.Block, Trigger: "Immediate", For: span(r.Duration)}
		if !r.Threshold.IsUnlimited() {
			x.Trigger = r.Threshold.String()
		}
		for _, p := range r.Patterns {
			x.Regex = append(x.Regex, p.String())
		}
		for _, a := range r.Actions {
			x.Actions = append(x.Actions, strings.TrimSpace(string(a.Kind)+" "+a.Key+" "+a.Value))
		}
		e.Rules = append(e.Rules, x)
	}
	return e, nil
}

// slots says which slots the site lives in, each with its portion of the
// limits.
func (e shaped) slots() string {
	text := strings.Trim(fmt.Sprint(e.Slots), "[]")
	if e.Next != nil {
		text += ", changing to " + strings.Trim(fmt.Sprint(e.Next), "[]")
	}
	return text
}

// find finds where mail for a domain goes: by the routing table, else by the
// MX records of now. Without those the values of its name are left.
func (e *shaped) find(ctx context.Context, db *store.Store, domain mail.Domain) ([]mail.Host, mail.Site, error) {
	var dns resolver.DNSConfig
	if err := boot.Load(nil, &dns); err != nil {
		return nil, "", err
	}
	rules, err := db.Routing(ctx)
	if err != nil {
		return nil, "", err
	}
	hosts, site, err := resolver.SmartHosts(dns, rules, domain)
	if err != nil || len(hosts) > 0 {
		e.Routed = true
		return hosts, site, err
	}
	hosts, site, err = resolver.Exchangers(ctx, dns, domain)
	if err != nil {
		e.Trouble = err.Error()
	}
	return hosts, site, ctx.Err()
}

func (e shaped) print(w io.Writer) error {
	switch hosts := clean(strings.Join(e.Hosts, " ")); {
	case e.Trouble != "":
		fmt.Fprintf(w, "%s has no known hosts: these are the values of its name\n  trouble   %s\n", e.Domain, clean(e.Trouble))
	case e.Routed:
		fmt.Fprintf(w, "%s goes to site %s\n  hosts     %s, by the routing table\n", e.Domain, clean(e.Site), hosts)
	default:
		fmt.Fprintf(w, "%s goes to site %s\n  hosts     %s\n", e.Domain, clean(e.Site), hosts)
	}
	fmt.Fprintf(w, "  provider  %s\n", orDash(clean(e.Provider)))
	if e.Site != "" {
		fmt.Fprintf(w, "  slots     %s\n", e.slots())
	}
	fmt.Fprintln(w)
	t := newTable(w, "KEY", "VALUE", "SET BY", "IN")
	for _, o := range e.Values {
		t.row(o.Key, clean(o.Value), orDash(clean(o.Block)), clean(o.From))
	}
	if err := t.flush(); err != nil {
		return err
	}
	for _, l := range e.Shared {
		fmt.Fprintf(w, "\nshared by name: %s", clean(l.Name))
		if l.Connections > 0 {
			fmt.Fprintf(w, ", %d connections", l.Connections)
		}
		if !l.MessageRate.IsUnlimited() {
			fmt.Fprintf(w, ", messages %s", l.MessageRate)
		}
		if !l.SelectionRate.IsUnlimited() {
			fmt.Fprintf(w, ", selected %s", l.SelectionRate)
		}
		fmt.Fprintln(w)
	}
	if len(e.Rules) == 0 {
		return nil
	}
	fmt.Fprintln(w)
	t = newTable(w, "RULE OF", "TRIGGER", "FOR", "ACTIONS", "REGEX")
	for _, r := range e.Rules {
		t.row(clean(r.Block), r.Trigger, r.For, strings.Join(r.Actions, ", "), clean(strings.Join(r.Regex, " | ")))
	}
	return t.flush()
}

func shapingValidateCommand() *cobra.Command {
	return &cobra.Command{
		Use:   "validate FILE",
		Short: "Say everything that is wrong with a file, or strange about it",
		Long: `Reads the file as a version over presets and POSTRIDER_SHAPING_FILE, looks up
the domains that it names, and prints all errors and warnings: unknown keys,
values and regular expressions that cannot be read, keys and rules without
effect, matchers that match nothing, providers that overlap, domains that are
aliases of one site. A rule that cannot be read is an error here; apply leaves
it out and says so.`,
		Args: exactly("FILE"),
		RunE: func(c *cobra.Command, args []string) error {
			text, err := os.ReadFile(args[0])
			if err != nil {
				return err
			}
			s, warnings, err := checkShaping(args[0], string(text))
			if err == nil {
				warnings = append(warnings, aliases(c.Context(), s, lookUpWithin)...)
				err = errors.Join(s.LeftOut()...)
			}
			for _, w := range warnings {
				fmt.Fprintln(c.OutOrStdout(), "warning:", clean(w))
			}
			if err != nil {
				return err
			}
			_, err = fmt.Fprintf(c.OutOrStdout(), "%s can be applied; warnings: %d\n", args[0], len(warnings))
			return err
		},
	}
}

// checkShaping reads a text as the version over what the environment says.
// The warnings are of that text alone.
func checkShaping(name, text string) (*shaping.Shaping, []string, error) {
	cfg, err := shapingConfig()
	if err != nil {
		return nil, nil, err
	}
	texts, err := cfg.Texts()
	if err != nil {
		return nil, nil, err
	}
	s, all, err := shaping.Build(cfg, append(texts, shaping.Text{From: name, TOML: text})...)
	var warnings []string
	for _, w := range all {
		of := func(t shaping.Text) bool { return strings.HasPrefix(w, t.From+": ") }
		if rest, ok := strings.CutPrefix(w, name+": "); ok {
			warnings = append(warnings, rest)
		} else if !slices.ContainsFunc(texts, of) {
			warnings = append(warnings, w) // of all texts together
		}
	}
	if s != nil {
		warnings = append(warnings, s.Doubts()...)
	}
	return s, warnings, err
}

// lookUpWithin bounds the look-ups of validate, and lookUpSoon those of apply,
// which somebody may wait for in an emergency.
const (
	lookUpWithin = time.Minute
	lookUpSoon   = 5 * time.Second
)

// aliases looks up the domains that a file names and says which share a site,
// or a provider with others.
func aliases(ctx context.Context, s *shaping.Shaping, within time.Duration) (warnings []string) {
	ctx, cancel := context.WithTimeout(ctx, within)
	defer cancel()
	var dns resolver.DNSConfig
	if err := boot.Load(nil, &dns); err != nil {
		return []string{err.Error()}
	}
	by := map[mail.Site][]string{}
	for _, domain := range s.Rollups() {
		hosts, site, err := resolver.Exchangers(ctx, dns, domain)
		if err != nil {
			warnings = append(warnings, fmt.Sprintf("%q: %v", domain, err))
			continue
		}
		by[site] = append(by[site], string(domain))
		if of := s.ProvidersOf(domain, hosts); len(of) > 0 {
			warnings = append(warnings, fmt.Sprintf("%q: also matched by provider %s, under its own block", domain, strings.Join(of, ", ")))
		}
		if of := s.ProvidersOf("", hosts); len(of) > 1 {
			warnings = append(warnings, fmt.Sprintf("providers %s overlap: all match the hosts of %s", strings.Join(of, ", "), domain))
		}
	}
	for site, domains := range by {
		if len(domains) > 1 {
			warnings = append(warnings, fmt.Sprintf("%s are one site, %s: their blocks hold for each other's mail", strings.Join(domains, ", "), site))
		}
	}
	slices.Sort(warnings)
	return slices.Compact(warnings)
}

func shapingShowCommand() *cobra.Command {
	return &cobra.Command{
		Use:   "show [VERSION]",
		Short: "Print the text of a version; of the one that counts by default",
		Args:  atMost("VERSION"),
		RunE: func(c *cobra.Command, args []string) error {
			return withStore(c.Context(), func(db *store.Store) error {
				v, err := versionOf(c.Context(), db, args)
				if err != nil {
					return err
				}
				_, err = fmt.Fprint(c.OutOrStdout(), v.Text)
				return err
			})
		},
	}
}

// versionOf returns the version that the arguments name.
func versionOf(ctx context.Context, db *store.Store, args []string) (store.ShapingVersion, error) {
	var n int64
	if len(args) > 0 {
		var err error
		if n, err = strconv.ParseInt(args[0], 10, 64); err != nil || n < 1 {
			return store.ShapingVersion{}, usageError{fmt.Errorf("version %q, want a number of shaping history", args[0])}
		}
	}
	v, err := db.Shaping(ctx, n)
	if errors.Is(err, store.ErrNotFound) {
		if n == 0 {
			return v, errors.New("no version was applied: presets and POSTRIDER_SHAPING_FILE hold alone; postrider shaping explain shows them")
		}
		return v, errors.New("there is no such version; see postrider shaping history")
	}
	return v, err
}

func shapingApplyCommand() *cobra.Command {
	var note string
	c := &cobra.Command{
		Use:   "apply FILE",
		Short: "Make a file the version that counts, on all processes within two seconds",
		Args:  exactly("FILE"),
		RunE: func(c *cobra.Command, args []string) error {
			text, err := os.ReadFile(args[0])
			if err != nil {
				return err
			}
			return applyShaping(c, args[0], string(text), note)
		},
	}
	c.Flags().StringVar(&note, "note", "", "why, for the history")
	return c
}

func applyShaping(c *cobra.Command, name, text, note string) error {
	s, warnings, err := checkShaping(name, text)
	if err == nil {
		for _, wrong := range s.LeftOut() {
			warnings = append(warnings, wrong.Error())
		}
		warnings = append(warnings, aliases(c.Context(), s, lookUpSoon)...)
	}
	for _, w := range warnings {
		fmt.Fprintln(c.ErrOrStderr(), "warning:", clean(w))
	}
	if err != nil {
		return err
	}
	return withStore(c.Context(), func(db *store.Store) error {
		version, err := db.ApplyShaping(c.Context(), text, note, operator())
		if err != nil {
			return err
		}
		_, err = fmt.Fprintf(c.OutOrStdout(), "version %d holds\n", version)
		return err
	})
}

// operator is who does something by the command line.
func operator() string {
	if u, err := user.Current(); err == nil {
		return u.Username
	}
	return "uid " + strconv.Itoa(os.Getuid())
}

// versionLine is a version in JSON.
type versionLine struct {
	Version   int64      `json:"version"`
	AppliedAt *time.Time `json:"applied_at"`
	By        string     `json:"by"`
	Bytes     int64      `json:"bytes"`
	Note      string     `json:"note,omitempty"`
}

func shapingHistoryCommand() *cobra.Command {
	var format string
	var limit int
	c := &cobra.Command{
		Use:   "history",
		Short: "List the versions, newest first: the first one counts",
		Args:  exactly(),
		RunE: func(c *cobra.Command, _ []string) error {
			return withStore(c.Context(), func(db *store.Store) error {
				all, err := db.ShapingHistory(c.Context(), limit)
				if err != nil {
					return err
				}
				lines := make([]versionLine, len(all))
				for i, v := range all {
					lines[i] = versionLine{v.Version, moment(v.AppliedAt), v.By, v.Bytes, v.Note}
				}
				return printAs(format, c.OutOrStdout(), lines, func() error {
					t := newTable(c.OutOrStdout(), "VERSION", "APPLIED", "BY", "BYTES", "NOTE")
					for _, v := range all {
						t.row(fmt.Sprint(v.Version), clock(v.AppliedAt), clean(v.By), fmt.Sprint(v.Bytes), clean(v.Note))
					}
					return t.flush()
				})
			})
		},
	}
	outputFlag(c, &format)
	c.Flags().IntVarP(&limit, "limit", "n", 20, "at most so many")
	return c
}

func shapingRollbackCommand() *cobra.Command {
	return &cobra.Command{
		Use:   "rollback [VERSION]",
		Short: "Apply an earlier version again; the one before the last by default",
		Args:  atMost("VERSION"),
		RunE: func(c *cobra.Command, args []string) error {
			var v store.ShapingVersion
			err := withStore(c.Context(), func(db *store.Store) error {
				if len(args) == 0 {
					all, err := db.ShapingHistory(c.Context(), 2)
					if err != nil {
						return err
					}
					if len(all) < 2 {
						return errors.New("there is no earlier version; an empty file, applied, takes this one back")
					}
					args = []string{fmt.Sprint(all[1].Version)}
				}
				var err error
				v, err = versionOf(c.Context(), db, args)
				return err
			})
			if err != nil {
				return err
			}
			return applyShaping(c, fmt.Sprintf("version %d", v.Version), v.Text, fmt.Sprintf("version %d again", v.Version))
		},
	}
}
