package postrider

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/signal"
	"strings"
	"syscall"

	"github.com/spf13/cobra"

	"github.com/postrider/postrider/pkg/boot"
	"github.com/postrider/postrider/pkg/store"
)

// Main runs the command line and returns the exit code: 0, 1 for a failure, 2
// for a wrong command line or configuration.
func Main() int {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	err := newCommand().ExecuteContext(ctx)
	if err == nil {
		return 0
	}
	if denied(err) {
		err = fmt.Errorf("the database login may not do this: acting takes the role postrider_operator, migrating the owner of the schema (%w)", err)
	}
	fmt.Fprintln(os.Stderr, "postrider:", err)
	var config *boot.ConfigError
	var usage usageError
	if errors.As(err, &config) || errors.As(err, &usage) {
		return 2
	}
	return 1
}

// denied reports whether Postgres refused for want of a privilege.
func denied(err error) bool {
	const insufficientPrivilege = "42501"
	var said interface{ SQLState() string }
	return errors.As(err, &said) && said.SQLState() == insufficientPrivilege
}

// usageError is a wrong command line.
type usageError struct{ error }

func newCommand() *cobra.Command {
	root := &cobra.Command{
		Use:   "postrider",
		Short: "Outbound mail delivery on Postgres and NATS",
		Long: `postrider keeps mail in Postgres and relays it at the pace that each
destination accepts.

The commands find the queue by POSTRIDER_POSTGRES_URL, or else the one of the
"postrider dev" that runs with the same POSTRIDER_DATA_DIR (./.postrider).`,
		SilenceErrors: true,
		SilenceUsage:  true,
	}
	root.SetFlagErrorFunc(func(c *cobra.Command, err error) error {
		return usageError{fmt.Errorf("%w; see %s --help", err, c.CommandPath())}
	})
	below := []*cobra.Command{devCommand(), queueCommand(), siteCommand(), showCommand(), routeCommand(), sourceCommand(), poolCommand(),
		tenantCommand(), credentialCommand(), domainCommand(), shapingCommand(), suspensionCommand(), tlsCommand(), busCommand(), migrateCommand(), versionCommand()}
	return group(root, append(below, operateCommands()...)...)
}

// group makes a command that only has others below it.
func group(c *cobra.Command, below ...*cobra.Command) *cobra.Command {
	c.AddCommand(below...)
	c.SuggestionsMinimumDistance = 2
	c.Args = func(c *cobra.Command, args []string) error {
		if len(args) > 0 {
			meant := ""
			if like := c.SuggestionsFor(args[0]); len(like) > 0 {
				meant = ", did you mean " + strings.Join(like, " or ") + "?"
			}
			return usageError{fmt.Errorf("unknown command %q%s; see %s --help", args[0], meant, c.CommandPath())}
		}
		return nil
	}
	c.RunE = func(c *cobra.Command, _ []string) error { return c.Help() }
	return c
}

func versionCommand() *cobra.Command {
	return &cobra.Command{
		Use:   "version",
		Short: "Print the version",
		Args:  exactly(),
		RunE: func(c *cobra.Command, _ []string) error {
			_, err := fmt.Fprintln(c.OutOrStdout(), "postrider", boot.BuildVersion())
			return err
		},
	}
}

func migrateCommand() *cobra.Command {
	up := &cobra.Command{
		Use:   "up",
		Short: "Apply the migrations that are missing, one process at a time",
		Args:  exactly(),
		RunE: func(c *cobra.Command, _ []string) error {
			url, err := queueURL()
			if err != nil {
				return err
			}
			if err := store.Migrate(c.Context(), url); err != nil {
				return err
			}
			return printMigrations(c.Context(), c.OutOrStdout(), url)
		},
	}
	status := &cobra.Command{
		Use:   "status",
		Short: "List the migrations and when each was applied",
		Args:  exactly(),
		RunE: func(c *cobra.Command, _ []string) error {
			url, err := queueURL()
			if err != nil {
				return err
			}
			return printMigrations(c.Context(), c.OutOrStdout(), url)
		},
	}
	c := group(&cobra.Command{Use: "migrate", Short: "Bring the schema up to date, as migrate up does, or show where it stands"}, up, status)
	c.RunE = up.RunE
	return c
}

func printMigrations(ctx context.Context, w io.Writer, url string) error {
	steps, err := store.Migrations(ctx, url)
	if err != nil {
		return err
	}
	t := newTable(w, "VERSION", "NAME", "APPLIED")
	for _, s := range steps {
		applied := "pending"
		if !s.AppliedAt.IsZero() {
			applied = clock(s.AppliedAt)
		}
		t.row(fmt.Sprint(s.Version), s.Name, applied)
	}
	return t.flush()
}

// withStore runs f with the queue that the environment, or the running
// postrider dev, names.
func withStore(ctx context.Context, f func(*store.Store) error) error {
	url, err := queueURL()
	if err != nil {
		return err
	}
	db, err := store.Open(ctx, store.Config{URL: url, MaxConns: 2})
	if err != nil {
		return err
	}
	defer db.Close()
	return f(db)
}
