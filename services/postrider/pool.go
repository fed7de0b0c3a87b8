package postrider

import (
	"cmp"
	"errors"
	"fmt"
	"io"
	"slices"
	"strconv"
	"strings"

	"github.com/spf13/cobra"

	"github.com/postrider/postrider/pkg/store"
)

// poolLine is a pool in JSON.
type poolLine struct {
	Pool    string           `json:"pool"`
	Sources map[string]int32 `json:"sources"` // with their weights
	Tenants []string         `json:"tenants"`
}

func poolCommand() *cobra.Command {
	parent := &cobra.Command{
		Use:   "pool",
		Short: "Pools of sources, which share mail by weight",
		Long: `Mail leaves from the pool that its route names, else from that of its tenant,
else from the pool default, if there is one. Changes take effect within two
seconds.

  postrider pool set default one=3 two
  postrider pool assign acme bulk`,
	}
	return group(parent, poolSetCommand(), poolListCommand(), poolAssignCommand(), poolDeleteCommand())
}

func poolSetCommand() *cobra.Command {
	return &cobra.Command{
		Use:   "set NAME SOURCE[=WEIGHT]...",
		Short: "Make a pool of sources, in place of those that it had",
		Args:  atLeast("NAME", "SOURCE[=WEIGHT]..."),
		RunE: func(c *cobra.Command, args []string) error {
			members, err := parseMembers(args[0], args[1:])
			if err != nil {
				return err
			}
			return did(c, "pool "+args[0]+" is set", func(db *store.Store) error {
				err := db.SetPool(c.Context(), args[0], members)
				if errors.Is(err, store.ErrNotFound) {
					return fmt.Errorf("pool %s: one of the sources is not there, see postrider source list", args[0])
				}
				return err
			})
		},
	}
}

func parseMembers(pool string, args []string) ([]store.Member, error) {
	if !tenantName.MatchString(pool) {
		return nil, usageError{fmt.Errorf("pool %q: want up to 63 lower-case letters, digits, dots, hyphens and underscores", pool)}
	}
	var members []store.Member
	for _, arg := range args {
		name, weight, given := strings.Cut(arg, "=")
		m := store.Member{Pool: pool, Source: name, Weight: 1}
		if given {
			n, err := strconv.ParseInt(weight, 10, 32)
			if err != nil || n < 1 || n > 1000 {
				return nil, usageError{fmt.Errorf("%q: want a weight from 1 to 1000", arg)}
			}
			m.Weight = int32(n)
		}
		members = append(members, m)
	}
	return members, nil
}

func poolListCommand() *cobra.Command {
	var format string
	c := &cobra.Command{
		Use:   "list",
		Short: "List the pools, their sources with weights, and the tenants that use them",
		Args:  exactly(),
		RunE: func(c *cobra.Command, _ []string) error {
			return withStore(c.Context(), func(db *store.Store) error {
				all, err := db.SourceList(c.Context())
				if err != nil {
					return err
				}
				lines := poolLines(all)
				return printAs(format, c.OutOrStdout(), lines, func() error { return printPools(c.OutOrStdout(), all, lines) })
			})
		},
	}
	outputFlag(c, &format)
	return c
}

func poolLines(all store.Sources) []poolLine {
	lines := []poolLine{}
	for _, m := range all.Members { // by pool
		if n := len(lines); n == 0 || lines[n-1].Pool != m.Pool {
			lines = append(lines, poolLine{m.Pool, map[string]int32{}, []string{}})
		}
		lines[len(lines)-1].Sources[m.Source] = m.Weight
	}
	for tenant, pool := range all.Tenants {
		for i := range lines {
			if lines[i].Pool == pool {
				lines[i].Tenants = append(lines[i].Tenants, tenant)
			}
		}
	}
	return lines
}

func printPools(w io.Writer, all store.Sources, lines []poolLine) error {
	t := newTable(w, "POOL", "SOURCES", "TENANTS")
	for _, l := range lines {
		var sources []string
		for _, m := range all.Members {
			if m.Pool == l.Pool {
				sources = append(sources, fmt.Sprintf("%s=%d", m.Source, m.Weight))
			}
		}
		t.row(l.Pool, strings.Join(sources, " "), strings.Join(l.Tenants, " "))
	}
	return t.flush()
}

func poolAssignCommand() *cobra.Command {
	return &cobra.Command{
		Use:   "assign TENANT POOL",
		Short: `Have the mail of a tenant leave from a pool; "" is the default one`,
		Args:  exactly("TENANT", "POOL"),
		RunE: func(c *cobra.Command, args []string) error {
			return did(c, "mail of tenant "+args[0]+" leaves from pool "+cmp.Or(args[1], "default"), func(db *store.Store) error {
				if err := db.SetTenantPool(c.Context(), args[0], args[1]); err != nil {
					return explain(err, "tenant", args[0])
				}
				return warnOfPool(c, db, args[1])
			})
		},
	}
}

// warnOfPool warns of a pool that keeps its mail waiting.
func warnOfPool(c *cobra.Command, db *store.Store, name string) error {
	if name == "" {
		return nil
	}
	all, err := db.SourceList(c.Context())
	switch {
	case err != nil: // what was asked for is done all the same
		return said(c.ErrOrStderr(), "warning: whether pool %s has a source is not known: %v\n", name, err)
	case !slices.ContainsFunc(all.Members, func(m store.Member) bool { return m.Pool == name }):
		return said(c.ErrOrStderr(), "warning: pool %s has no source yet, and its mail waits for one\n", name)
	}
	return nil
}

func poolDeleteCommand() *cobra.Command {
	return &cobra.Command{
		Use:   "delete NAME",
		Short: "Remove a pool; mail that is to leave from it waits",
		Args:  exactly("NAME"),
		RunE: func(c *cobra.Command, args []string) error {
			return did(c, "deleted pool "+args[0], func(db *store.Store) error { return db.SetPool(c.Context(), args[0], nil) })
		},
	}
}
