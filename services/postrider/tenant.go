package postrider

import (
	"fmt"
	"io"
	"regexp"
	"time"

	"github.com/spf13/cobra"

	"github.com/postrider/postrider/pkg/store"
)

// tenantLine is a tenant in JSON.
type tenantLine struct {
	Tenant         string     `json:"tenant"`
	Priority       int16      `json:"priority"`
	Limits         limitsLine `json:"limits"`
	SuspendedUntil *time.Time `json:"suspended_until,omitempty"`
	SuspendReason  string     `json:"suspend_reason,omitempty"`
	Today          usageLine  `json:"today"`
	CreatedAt      *time.Time `json:"created_at"`
}

// usageLine is what was taken today, UTC.
type usageLine struct {
	Messages   int64 `json:"messages"`
	Recipients int64 `json:"recipients"`
	Bytes      int64 `json:"bytes"`
}

func (u *usageLine) add(used store.Usage) {
	u.Messages += used.Messages
	u.Recipients += used.Recipients
	u.Bytes += used.Bytes
}

func tenantCommand() *cobra.Command {
	parent := &cobra.Command{
		Use:   "tenant",
		Short: "Customers: whose mail it is, and how much of it may come",
		Long: `A tenant is a customer of this installation. Its credentials let clients in,
its domains say in whose name they may send, and its limits bound how much.
Changes take effect within seconds, also for connections that are open.

  postrider tenant add acme --recipients-per-day 100000
  postrider domain add acme.example --tenant acme
  postrider credential add app --tenant acme`,
	}
	return group(parent, tenantAddCommand(), tenantListCommand(), tenantSetCommand(), tenantSuspendCommand(), tenantResumeCommand(),
		tenantDeleteCommand())
}

// tenantName is what the table accepts.
var tenantName = regexp.MustCompile(`^[a-z0-9][a-z0-9._-]{0,62}$`)

// tenantFlags are the settings of a tenant.
type tenantFlags struct {
	limits   limitFlags
	priority int16
}

func (f *tenantFlags) add(c *cobra.Command) {
	f.limits.add(c)
	c.Flags().Int16Var(&f.priority, "priority", 0, "priority of its messages; higher goes first")
}

func (f *tenantFlags) apply(c *cobra.Command, t *store.Tenant) error {
	if c.Flags().Changed("priority") {
		t.Priority = f.priority
	}
	return f.limits.apply(c, &t.Limits)
}

func tenantAddCommand() *cobra.Command {
	var flags tenantFlags
	c := &cobra.Command{
		Use:   "add NAME",
		Short: "Add a tenant",
		Args:  exactly("NAME"),
		RunE: func(c *cobra.Command, args []string) error {
			t := store.Tenant{Name: args[0]}
			if !tenantName.MatchString(t.Name) {
				return usageError{fmt.Errorf("tenant %q: want up to 63 lower-case letters, digits, dots, hyphens and underscores", t.Name)}
			}
			if err := flags.apply(c, &t); err != nil {
				return err
			}
			return withStore(c.Context(), func(db *store.Store) error {
				if err := db.CreateTenant(c.Context(), t); err != nil {
					return explain(err, "tenant", t.Name)
				}
				_, err := fmt.Fprintf(c.OutOrStdout(), "added tenant %s, limits: %s\n", t.Name, describeLimits(t.Limits))
				return err
			})
		},
	}
	flags.add(c)
	return c
}

func tenantListCommand() *cobra.Command {
	var format string
	c := &cobra.Command{
		Use:   "list",
		Short: "List the tenants, their limits, and what they sent today (UTC)",
		Args:  exactly(),
		RunE: func(c *cobra.Command, _ []string) error {
			return withStore(c.Context(), func(db *store.Store) error {
				tenants, err := db.Tenants(c.Context())
				if err != nil {
					return err
				}
				used, err := db.UsageOf(c.Context(), time.Now())
				if err != nil {
					return err
				}
				lines := tenantLines(tenants, used)
				return printAs(format, c.OutOrStdout(), lines, func() error { return printTenants(c.OutOrStdout(), tenants, lines) })
			})
		},
	}
	outputFlag(c, &format)
	return c
}

func tenantLines(tenants []store.Tenant, used []store.Usage) []tenantLine {
	today := map[string]*usageLine{}
	for _, u := range used {
		if today[u.Tenant] == nil {
			today[u.Tenant] = &usageLine{}
		}
		today[u.Tenant].add(u)
	}
	lines := make([]tenantLine, len(tenants))
	for i, t := range tenants {
		lines[i] = tenantLine{Tenant: t.Name, Priority: t.Priority, Limits: limitsLine(t.Limits), CreatedAt: moment(t.CreatedAt)}
		if t.Suspended(time.Now()) {
			lines[i].SuspendedUntil, lines[i].SuspendReason = moment(t.SuspendedUntil), t.SuspendReason
		}
		if u := today[t.Name]; u != nil {
			lines[i].Today = *u
		}
	}
	return lines
}

func printTenants(w io.Writer, tenants []store.Tenant, lines []tenantLine) error {
	t := newTable(w, "TENANT", "PRIORITY", "LIMITS", "TODAY", "SUSPENDED")
	for i, l := range lines {
		suspended := ""
		if l.SuspendedUntil != nil {
			suspended = "until " + clock(*l.SuspendedUntil) + " " + clean(l.SuspendReason)
		}
		t.row(l.Tenant, fmt.Sprint(l.Priority), describeLimits(tenants[i].Limits),
			fmt.Sprintf("%d messages, %d recipients, %s", l.Today.Messages, l.Today.Recipients, size(l.Today.Bytes)), suspended)
	}
	return t.flush()
}

// changeTenant runs a change of one tenant and says that it was done.
func changeTenant(c *cobra.Command, name, done string, change func(*store.Tenant) error) error {
	return withStore(c.Context(), func(db *store.Store) error {
		if err := db.ChangeTenant(c.Context(), name, change); err != nil {
			return explain(err, "tenant", name)
		}
		_, err := fmt.Fprintln(c.OutOrStdout(), done)
		return err
	})
}

func tenantSetCommand() *cobra.Command {
	var flags tenantFlags
	c := &cobra.Command{
		Use:   "set NAME",
		Short: "Change limits or priority; what is not given stays",
		Args:  exactly("NAME"),
		RunE: func(c *cobra.Command, args []string) error {
			if c.Flags().NFlag() == 0 {
				return usageError{fmt.Errorf("nothing to change; see %s --help", c.CommandPath())}
			}
			return changeTenant(c, args[0], "changed tenant "+args[0], func(t *store.Tenant) error { return flags.apply(c, t) })
		},
	}
	flags.add(c)
	return c
}

func tenantSuspendCommand() *cobra.Command {
	var reason string
	var wait time.Duration
	c := &cobra.Command{
		Use:   "suspend NAME",
		Short: "Take no mail from a tenant for a while (452); what was accepted is relayed",
		Args:  exactly("NAME"),
		RunE: func(c *cobra.Command, args []string) error {
			done := fmt.Sprintf("suspended tenant %s for %s", args[0], span(wait))
			return changeTenant(c, args[0], done, func(t *store.Tenant) error {
				t.SuspendedUntil, t.SuspendReason = time.Now().Add(wait), reason
				return nil
			})
		},
	}
	forFlag(c, &wait)
	c.Flags().StringVar(&reason, "reason", "", "why, for those who look later; clients do not see it")
	return c
}

func tenantResumeCommand() *cobra.Command {
	return &cobra.Command{
		Use:   "resume NAME",
		Short: "End a suspension early",
		Args:  exactly("NAME"),
		RunE: func(c *cobra.Command, args []string) error {
			return changeTenant(c, args[0], "resumed tenant "+args[0], func(t *store.Tenant) error {
				if !t.Suspended(time.Now()) {
					return fmt.Errorf("tenant %s is not suspended", args[0])
				}
				t.SuspendedUntil, t.SuspendReason = time.Time{}, ""
				return nil
			})
		},
	}
}

func tenantDeleteCommand() *cobra.Command {
	var all bool
	c := &cobra.Command{
		Use:   "delete NAME",
		Short: "Delete a tenant; mail that was accepted from it is relayed all the same",
		Args:  exactly("NAME"),
		RunE: func(c *cobra.Command, args []string) error {
			return withStore(c.Context(), func(db *store.Store) error {
				if err := db.DeleteTenant(c.Context(), args[0], all); err != nil {
					return explain(err, "tenant", args[0])
				}
				_, err := fmt.Fprintln(c.OutOrStdout(), "deleted tenant", args[0])
				return err
			})
		},
	}
	c.Flags().BoolVar(&all, "all", false, "with its credentials and domains")
	return c
}
