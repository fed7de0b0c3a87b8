package postrider

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/netip"
	"net/url"
	"regexp"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/postrider/postrider/pkg/mail"
	"github.com/postrider/postrider/pkg/store"
)

// sourceLine is a source in JSON. A password of its proxy is left out.
type sourceLine struct {
	Source         string      `json:"source"`
	IPv4           string      `json:"ipv4,omitempty"`
	IPv6           string      `json:"ipv6,omitempty"`
	Hello          string      `json:"hello,omitempty"`
	Egress         string      `json:"egress,omitempty"`
	Pools          []string    `json:"pools"`
	WarmUp         string      `json:"warm_up,omitempty"`
	WarmUpFrom     *time.Time  `json:"warm_up_from,omitempty"`
	SuspendedUntil *time.Time  `json:"suspended_until,omitempty"`
	SuspendReason  string      `json:"suspend_reason,omitempty"`
	Blocks         []blockLine `json:"blocks"`
}

// blockLine is a site that does not want a source.
type blockLine struct {
	Site   mail.Site  `json:"site"`
	Until  *time.Time `json:"until"`
	Reason string     `json:"reason"`
}

func sourceCommand() *cobra.Command {
	parent := &cobra.Command{
		Use:   "source",
		Short: "Addresses that mail leaves from",
		Long: `A source is an address that mail leaves from, or one of each family. It is
used by the pools that it is in (postrider pool), through the delivery worker
that has the address, or through a proxy. Changes take effect within two
seconds.

  postrider source set one --ipv4 192.0.2.1 --hello one.mail.example.com
  postrider pool set default one=3 two`,
	}
	return group(parent, sourceSetCommand(), sourceListCommand(), sourceSuspendCommand(), sourceResumeCommand(), sourceUnblockCommand(),
		sourceDeleteCommand())
}

func sourceSetCommand() *cobra.Command {
	var four, six, hello, egress, warmUp, from string
	c := &cobra.Command{
		Use:   "set NAME",
		Short: "Add a source, or change what the flags say of it",
		Args:  exactly("NAME"),
		RunE: func(c *cobra.Command, args []string) error {
			if !tenantName.MatchString(args[0]) {
				return usageError{fmt.Errorf("source %q: want up to 63 lower-case letters, digits, dots, hyphens and underscores", args[0])}
			}
			return did(c, "source "+args[0]+" is set", func(db *store.Store) error {
				return changeSource(c.Context(), db, args[0], true, func(s *store.Source) error {
					for _, f := range []struct {
						name, value string
						into        *string
					}{{"hello", hello, &s.Hello}, {"egress", egress, &s.Egress}, {"warm-up", warmUp, &s.WarmUp}} {
						if c.Flags().Changed(f.name) {
							*f.into = f.value
						}
					}
					if !egressSyntax.MatchString(s.Egress) {
						return usageError{errors.New("--egress: want socks5://[user:password@]host:port or haproxy://host:port")}
					}
					if err := knownSchedule(c.Context(), db, s.WarmUp); err != nil {
						return err
					}
					return errors.Join(setAddress(c, "ipv4", four, &s.IPv4), setAddress(c, "ipv6", six, &s.IPv6), setFrom(c, from, s))
				})
			})
		},
	}
	c.Flags().StringVar(&four, "ipv4", "", "its IPv4 address; empty: none")
	c.Flags().StringVar(&six, "ipv6", "", "its IPv6 address; empty: none")
	c.Flags().StringVar(&hello, "hello", "", "its name in EHLO, which should resolve to its addresses; empty: POSTRIDER_HOSTNAME")
	c.Flags().StringVar(&egress, "egress", "", "socks5://[user:password@]host:port or haproxy://host:port; empty: the worker that has the address")
	c.Flags().StringVar(&warmUp, "warm-up", "", "a schedule of postrider.warm_ups, such as default; empty: none")
	c.Flags().StringVar(&from, "warm-up-from", "today", "first day of its warm-up, such as 2026-11-27")
	return c
}

// egressSyntax is that of the column.
var egressSyntax = regexp.MustCompile(`^((socks5|haproxy)://[^\s/]+:[0-9]+)?$`)

// knownSchedule refuses a warm-up by a schedule that is not there: nothing
// would ever leave.
func knownSchedule(ctx context.Context, db *store.Store, name string) error {
	if name == "" {
		return nil
	}
	all, err := db.SourceList(ctx)
	if err == nil && !slices.ContainsFunc(all.WarmUps, func(d store.WarmUpDay) bool { return d.Schedule == name }) {
		err = usageError{fmt.Errorf("there is no warm-up schedule %s in postrider.warm_ups", name)}
	}
	return err
}

func setAddress(c *cobra.Command, flag, text string, into *netip.Addr) error {
	if !c.Flags().Changed(flag) {
		return nil
	}
	*into = netip.Addr{}
	if text == "" {
		return nil
	}
	a, err := netip.ParseAddr(text)
	if err != nil || a.Zone() != "" || a.Is4() != (flag == "ipv4") {
		return usageError{fmt.Errorf("--%s %q: want an address of this family", flag, text)}
	}
	*into = a
	return nil
}

func setFrom(c *cobra.Command, from string, s *store.Source) error {
	switch {
	case s.WarmUp == "":
		s.WarmUpFrom = time.Time{}
	case from != "today":
		at, err := time.Parse(time.DateOnly, from)
		if err != nil {
			return usageError{fmt.Errorf("--warm-up-from %q: want a day such as 2026-11-27", from)}
		}
		s.WarmUpFrom = at
	case s.WarmUpFrom.IsZero() || c.Flags().Changed("warm-up-from"):
		s.WarmUpFrom = time.Now().UTC()
	}
	return nil
}

// did makes a change in Postgres and says what was done.
func did(c *cobra.Command, done string, do func(*store.Store) error) error {
	if err := withStore(c.Context(), do); err != nil {
		return err
	}
	return said(c.OutOrStdout(), "%s\n", done)
}

// changeSource lets change alter a source, which is made if it is not there
// and may be.
func changeSource(ctx context.Context, db *store.Store, name string, make bool, change func(*store.Source) error) error {
	s, err := db.Source(ctx, name)
	if errors.Is(err, store.ErrNotFound) && make {
		s, err = store.Source{Name: name}, nil
	}
	if err != nil {
		return explain(err, "source", name)
	}
	if err := change(&s); err != nil {
		return err
	}
	if !s.IPv4.IsValid() && !s.IPv6.IsValid() {
		return usageError{errors.New("give it an address: --ipv4, --ipv6 or both")}
	}
	return db.SetSource(ctx, s)
}

func sourceListCommand() *cobra.Command {
	var format string
	c := &cobra.Command{
		Use:   "list",
		Short: "List the sources, their pools, and what holds them back",
		Args:  exactly(),
		RunE: func(c *cobra.Command, _ []string) error {
			return withStore(c.Context(), func(db *store.Store) error {
				all, err := db.SourceList(c.Context())
				if err != nil {
					return err
				}
				lines := sourceLines(all)
				return printAs(format, c.OutOrStdout(), lines, func() error { return printSources(c.OutOrStdout(), lines) })
			})
		},
	}
	outputFlag(c, &format)
	return c
}

func sourceLines(all store.Sources) []sourceLine {
	lines := []sourceLine{}
	for _, s := range all.Sources {
		l := sourceLine{Source: s.Name, Hello: s.Hello, WarmUp: s.WarmUp, WarmUpFrom: moment(s.WarmUpFrom), Pools: []string{}, Blocks: []blockLine{}}
		if s.IPv4.IsValid() {
			l.IPv4 = s.IPv4.String()
		}
		if s.IPv6.IsValid() {
			l.IPv6 = s.IPv6.String()
		}
		if u, err := url.Parse(s.Egress); err == nil && s.Egress != "" {
			l.Egress = u.Scheme + "://" + u.Host
		}
		if time.Now().Before(s.SuspendedUntil) {
			l.SuspendedUntil, l.SuspendReason = moment(s.SuspendedUntil), s.SuspendReason
		}
		for _, m := range all.Members {
			if m.Source == s.Name {
				l.Pools = append(l.Pools, fmt.Sprintf("%s=%d", m.Pool, m.Weight))
			}
		}
		for _, b := range all.Blocks {
			if b.Source == s.Name {
				l.Blocks = append(l.Blocks, blockLine{b.Site, moment(b.Until), b.Reason})
			}
		}
		lines = append(lines, l)
	}
	return lines
}

func printSources(w io.Writer, lines []sourceLine) error {
	t := newTable(w, "SOURCE", "IPV4", "IPV6", "POOLS", "NOTES")
	for _, l := range lines {
		var notes []string
		if l.Egress != "" {
			notes = append(notes, "by "+l.Egress)
		}
		if l.WarmUp != "" {
			notes = append(notes, "warm-up "+l.WarmUp+" from "+l.WarmUpFrom.Format(time.DateOnly))
		}
		if l.SuspendedUntil != nil {
			notes = append(notes, "suspended until "+clock(*l.SuspendedUntil)+": "+l.SuspendReason)
		}
		for _, b := range l.Blocks {
			notes = append(notes, fmt.Sprintf("blocked by %s until %s: %s", b.Site, clock(*b.Until), b.Reason))
		}
		t.row(l.Source, l.IPv4, l.IPv6, strings.Join(l.Pools, " "), strings.Join(notes, "; "))
	}
	return t.flush()
}

func sourceSuspendCommand() *cobra.Command {
	var wait time.Duration
	var reason string
	c := &cobra.Command{
		Use:   "suspend NAME",
		Short: "Do not use a source for a while",
		Args:  exactly("NAME"),
		RunE: func(c *cobra.Command, args []string) error {
			return did(c, "suspended source "+args[0]+" for "+span(wait), func(db *store.Store) error {
				return changeSource(c.Context(), db, args[0], false, func(s *store.Source) error {
					s.SuspendedUntil, s.SuspendReason = time.Now().Add(wait), reason
					return nil
				})
			})
		},
	}
	forFlag(c, &wait)
	c.Flags().StringVar(&reason, "reason", "", "why, for those who look")
	return c
}

func sourceResumeCommand() *cobra.Command {
	return &cobra.Command{
		Use:   "resume NAME",
		Short: "Use a source again",
		Args:  exactly("NAME"),
		RunE: func(c *cobra.Command, args []string) error {
			return did(c, "resumed source "+args[0], func(db *store.Store) error {
				return changeSource(c.Context(), db, args[0], false, func(s *store.Source) error {
					s.SuspendedUntil, s.SuspendReason = time.Time{}, ""
					return nil
				})
			})
		},
	}
}

func sourceUnblockCommand() *cobra.Command {
	return &cobra.Command{
		Use:   "unblock NAME SITE",
		Short: "Try a source again at a site that has blocked it",
		Args:  exactly("NAME", "SITE"),
		RunE: func(c *cobra.Command, args []string) error {
			return did(c, "source "+args[0]+" is tried again at "+clean(args[1]), func(db *store.Store) error {
				return explain(db.UnblockSource(c.Context(), args[0], mail.Site(args[1])), "block of source", args[0]+" at "+args[1])
			})
		},
	}
}

func sourceDeleteCommand() *cobra.Command {
	return &cobra.Command{
		Use:   "delete NAME",
		Short: "Remove a source that is in no pool",
		Args:  exactly("NAME"),
		RunE: func(c *cobra.Command, args []string) error {
			return did(c, "deleted source "+args[0], func(db *store.Store) error {
				err := db.RemoveSource(c.Context(), args[0])
				if errors.Is(err, store.ErrInUse) {
					return fmt.Errorf("source %s is in a pool: take it out first", args[0])
				}
				return explain(err, "source", args[0])
			})
		},
	}
}
