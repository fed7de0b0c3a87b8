package postrider

import (
	"errors"
	"fmt"
	"os"
	"regexp"
	"time"

	"github.com/spf13/cobra"

	"github.com/postrider/postrider/pkg/store"
)

// relayCredentialLine is a credential in JSON, without its secret.
type relayCredentialLine struct {
	Name      string     `json:"name"`
	Username  string     `json:"username"`
	UpdatedAt *time.Time `json:"updated_at"`
}

// credentialName is what a relay credential may be called: its name is part
// of the name of a site.
var credentialName = regexp.MustCompile(`^[A-Za-z0-9][A-Za-z0-9._-]{0,62}$`)

func relayCredentialCommand() *cobra.Command {
	var username, file, format string
	var stdin bool
	set := &cobra.Command{
		Use:   "set NAME --username USER (--password-stdin | --password-file FILE)",
		Short: "Add a credential, or give it another user name and password",
		Args:  exactly("NAME"),
		RunE: func(c *cobra.Command, args []string) error {
			switch {
			case !credentialName.MatchString(args[0]):
				return usageError{fmt.Errorf("name %q, want up to 63 letters, digits, dots, hyphens and underscores", args[0])}
			case username == "":
				return usageError{errors.New("--username is missing")}
			case stdin == (file != ""):
				return usageError{errors.New("give the password by --password-stdin or --password-file")}
			}
			in := c.InOrStdin()
			if file != "" {
				opened, err := os.Open(file)
				if err != nil {
					return err
				}
				defer opened.Close()
				in = opened
			}
			password, err := readPassword(in)
			if err != nil {
				return err
			}
			if password == "" {
				return errors.New("the password is empty")
			}
			return withStore(c.Context(), func(db *store.Store) error {
				err := db.SetRelayCredential(c.Context(), store.RelayCredential{Name: args[0], Username: username, Secret: password})
				if err != nil {
					return err
				}
				return said(c.OutOrStdout(), "credential %s is set\n", args[0])
			})
		},
	}
	set.Flags().StringVar(&username, "username", "", "`user` name at the smart host")
	set.Flags().BoolVar(&stdin, "password-stdin", false, "read the password from the first line of standard input")
	set.Flags().StringVar(&file, "password-file", "", "read the password from the first line of a `file`")
	list := &cobra.Command{
		Use:   "list",
		Short: "Print the credentials, without their passwords",
		Args:  exactly(),
		RunE: func(c *cobra.Command, _ []string) error {
			return withStore(c.Context(), func(db *store.Store) error {
				found, err := db.RelayCredentials(c.Context())
				if err != nil {
					return err
				}
				lines := make([]relayCredentialLine, len(found))
				for i, f := range found {
					lines[i] = relayCredentialLine{f.Name, f.Username, moment(f.UpdatedAt)}
				}
				return printAs(format, c.OutOrStdout(), lines, func() error {
					t := newTable(c.OutOrStdout(), "NAME", "USERNAME", "SET AT")
					for _, f := range found {
						t.row(f.Name, clean(f.Username), clock(f.UpdatedAt))
					}
					return t.flush()
				})
			})
		},
	}
	outputFlag(list, &format)
	remove := &cobra.Command{
		Use:   "remove NAME",
		Short: "Remove a credential that no rule names",
		Args:  exactly("NAME"),
		RunE: func(c *cobra.Command, args []string) error {
			return withStore(c.Context(), func(db *store.Store) error {
				err := db.DeleteRelayCredential(c.Context(), args[0])
				switch {
				case errors.Is(err, store.ErrNotFound):
					return fmt.Errorf("there is no credential %s", args[0])
				case errors.Is(err, store.ErrInUse):
					return fmt.Errorf("a rule names credential %s: remove or change that first, see postrider route list", args[0])
				case err != nil:
					return err
				}
				return said(c.OutOrStdout(), "removed credential %s\n", args[0])
			})
		},
	}
	return group(&cobra.Command{
		Use:   "credential",
		Short: "What postrider authenticates by at smart hosts",
		Long: `A rule names a credential (postrider route set --credential). Its password is
kept in Postgres, where only delivery can read it, and it is sent over verified
TLS only.`,
	}, set, list, remove)
}
