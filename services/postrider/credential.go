package postrider

import (
	"errors"
	"fmt"
	"io"
	"net/netip"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/postrider/postrider/pkg/store"
)

// credentialLine is a credential in JSON. It has no secret but one that was
// made just now, which nobody can ask for again.
type credentialLine struct {
	Credential   string     `json:"credential"`
	Tenant       string     `json:"tenant"`
	Kind         string     `json:"kind"`
	SCRAM        bool       `json:"scram,omitempty"`
	Certificate  string     `json:"certificate,omitempty"`
	ReversePaths []string   `json:"reverse_paths"`
	FromDomains  []string   `json:"from_domains"`
	Networks     []string   `json:"networks"`
	Limits       limitsLine `json:"limits"`
	ExpiresAt    *time.Time `json:"expires_at,omitempty"`
	Disabled     bool       `json:"disabled"`
	CreatedAt    *time.Time `json:"created_at,omitempty"`
	Password     string     `json:"password,omitempty"`
	APIKey       string     `json:"api_key,omitempty"`
}

func newCredentialLine(c store.Credential) credentialLine {
	l := credentialLine{
		Credential: c.Name, Tenant: c.Tenant, Kind: string(c.Kind), SCRAM: c.SCRAM.Iterations > 0, Certificate: c.Certificate,
		ReversePaths: append([]string{}, c.ReversePaths...), FromDomains: append([]string{}, c.FromDomains...), Networks: []string{},
		Limits: limitsLine(c.Limits), ExpiresAt: moment(c.ExpiresAt), Disabled: c.Disabled, CreatedAt: moment(c.CreatedAt),
	}
	for _, n := range c.Networks {
		l.Networks = append(l.Networks, n.String())
	}
	return l
}

func credentialCommand() *cobra.Command {
	parent := &cobra.Command{
		Use:   "credential",
		Short: "What clients prove themselves by: passwords, API keys, certificates",
		Long: `A credential lets a client send for its tenant. Passwords are for SMTP AUTH
(PLAIN, LOGIN, SCRAM-SHA-256; the name is the user name), API keys for HTTP,
certificates for TLS clients. Only hashes are kept: a password or key that
postrider makes is printed once. Changes take effect within seconds, also for
connections that are open.

  postrider credential add app --tenant acme
  postrider credential add app-http --tenant acme --api-key
  postrider credential add mx1 --tenant acme --certificate mx1.pem
  postrider credential set app --network 192.0.2.0/24 --expires 90d`,
	}
	return group(parent, credentialAddCommand(), credentialListCommand(), credentialSetCommand(),
		credentialSwitchCommand("disable", "Let nobody in by a credential, and end its sessions", true),
		credentialSwitchCommand("enable", "Undo disable", false), credentialDeleteCommand())
}

// credentialFlags are the settings of a credential.
type credentialFlags struct {
	reversePaths, from, networks []string
	limits                       limitFlags
	expires                      string
}

func (f *credentialFlags) add(c *cobra.Command) {
	c.Flags().StringArrayVar(&f.reversePaths, "reverse-path", nil, "allowed `reverse-paths`: user@example.com, example.com, *.example.com, or * for any; repeatable; \"\" for all of the tenant's domains")
	c.Flags().StringArrayVar(&f.from, "from", nil, "allowed `addresses` of the From field, likewise; \"\" for the same as the reverse-paths")
	c.Flags().StringArrayVar(&f.networks, "network", nil, "`network` of its clients, such as 192.0.2.0/24; repeatable; \"\" for any")
	f.limits.add(c)
	c.Flags().StringVar(&f.expires, "expires", "never", "`when` it ends: a date, a moment, a time from now, or never: 2027-01-31, 90d")
}

// apply changes those settings whose flags were given.
func (f *credentialFlags) apply(c *cobra.Command, cr *store.Credential) (err error) {
	changed := c.Flags().Changed
	if changed("reverse-path") {
		if cr.ReversePaths, err = parsePatterns(f.reversePaths); err != nil {
			return err
		}
	}
	if changed("from") {
		if cr.FromDomains, err = parsePatterns(f.from); err != nil {
			return err
		}
	}
	if changed("network") {
		if cr.Networks, err = parseNetworks(f.networks); err != nil {
			return err
		}
	}
	if changed("expires") {
		if cr.ExpiresAt, err = parseExpiry(f.expires, time.Now()); err != nil {
			return err
		}
	}
	return f.limits.apply(c, &cr.Limits)
}

func parseNetworks(texts []string) ([]netip.Prefix, error) {
	if len(texts) == 1 && texts[0] == "" {
		return nil, nil
	}
	networks := make([]netip.Prefix, len(texts))
	for i, text := range texts {
		p, err := netip.ParsePrefix(text)
		if a, errAddr := netip.ParseAddr(text); errAddr == nil && a.Zone() == "" {
			p, err = netip.PrefixFrom(a, a.BitLen()), nil
		}
		if err != nil {
			return nil, usageError{fmt.Errorf("network %q, want 192.0.2.0/24, 2001:db8::/32 or a single address", text)}
		}
		networks[i] = p.Masked()
	}
	return networks, nil
}

func credentialAddCommand() *cobra.Command {
	var flags credentialFlags
	var secret secretFlags
	var tenant, format string
	c := &cobra.Command{
		Use:   "add NAME",
		Short: "Add a credential: a password that is made and printed, unless another kind is asked for",
		Args:  exactly("NAME"),
		RunE: func(c *cobra.Command, args []string) error {
			if err := errors.Join(secret.check(), checkFormat(format), checkCredentialName(args[0])); err != nil {
				return err
			}
			cr := store.Credential{Name: args[0], Tenant: tenant}
			if err := flags.apply(c, &cr); err != nil {
				return err
			}
			made, err := secret.apply(c.Context(), c.InOrStdin(), &cr)
			if err != nil {
				return err
			}
			return withStore(c.Context(), func(db *store.Store) error {
				err := db.CreateCredential(c.Context(), cr)
				if isNotFound(err) {
					return explain(err, "tenant", tenant)
				}
				if err != nil {
					return explain(err, "credential", cr.Name)
				}
				domains, err := db.Domains(c.Context(), tenant)
				if err != nil {
					return err
				}
				return printMade(c.OutOrStdout(), format, "added", cr, made, len(domains) == 0)
			})
		},
	}
	c.Flags().BoolVar(&secret.stdin, "password-stdin", false, "read the password from the first line of standard input")
	c.Flags().BoolVar(&secret.apiKey, "api-key", false, "make an API key for HTTP")
	c.Flags().StringVar(&secret.certificate, "certificate", "", "client certificate: PEM `file`, or sha256: and its fingerprint in hex")
	c.Flags().StringVar(&secret.certificateName, "certificate-name", "", "DNS `name` in client certificates of a CA that the listener trusts")
	noSCRAMFlag(c, &secret)
	tenantFlag(c, &tenant)
	flags.add(c)
	outputFlag(c, &format)
	return c
}

// printMade tells what was done, and the secret that nobody knows yet.
func printMade(w io.Writer, format, done string, cr store.Credential, made credentialLine, noDomains bool) error {
	line := newCredentialLine(cr)
	line.Password, line.APIKey = made.Password, made.APIKey
	return printAs(format, w, line, func() error {
		var text strings.Builder
		fmt.Fprintf(&text, "%s credential %s of tenant %s\n", done, clean(cr.Name), cr.Tenant)
		if made.Password != "" {
			fmt.Fprintf(&text, "password: %s\nIt is not kept and cannot be shown again.\n", made.Password)
		}
		if made.APIKey != "" {
			fmt.Fprintf(&text, "API key: %s\nIt is not kept and cannot be shown again.\n", made.APIKey)
		}
		if noDomains && len(cr.ReversePaths) == 0 {
			fmt.Fprintf(&text, "It may not send yet, for tenant %s has no domain: postrider domain add DOMAIN --tenant %s\n", cr.Tenant, cr.Tenant)
		}
		_, err := io.WriteString(w, text.String())
		return err
	})
}

func credentialListCommand() *cobra.Command {
	var tenant, format string
	c := &cobra.Command{
		Use:   "list",
		Short: "List the credentials, without their secrets",
		Args:  exactly(),
		RunE: func(c *cobra.Command, _ []string) error {
			return withStore(c.Context(), func(db *store.Store) error {
				credentials, err := db.Credentials(c.Context(), tenant)
				if err != nil {
					return err
				}
				lines := make([]credentialLine, len(credentials))
				for i, cr := range credentials {
					lines[i] = newCredentialLine(cr)
				}
				return printAs(format, c.OutOrStdout(), lines, func() error { return printCredentials(c.OutOrStdout(), credentials, time.Now()) })
			})
		},
	}
	c.Flags().StringVar(&tenant, "tenant", "", "only those of this tenant")
	outputFlag(c, &format)
	return c
}

func printCredentials(w io.Writer, credentials []store.Credential, now time.Time) error {
	t := newTable(w, "CREDENTIAL", "TENANT", "KIND", "STATE", "MAY SEND FROM", "NETWORKS", "LIMITS")
	for _, cr := range credentials {
		state := "active"
		switch {
		case cr.Disabled:
			state = "disabled"
		case !cr.ExpiresAt.IsZero() && !now.Before(cr.ExpiresAt):
			state = "expired"
		case !cr.ExpiresAt.IsZero():
			state = "expires in " + span(cr.ExpiresAt.Sub(now))
		}
		from, networks := "tenant's domains", "any"
		if len(cr.ReversePaths) > 0 {
			from = strings.Join(cr.ReversePaths, " ")
		}
		if len(cr.Networks) > 0 {
			networks = strings.Join(newCredentialLine(cr).Networks, " ")
		}
		t.row(clean(cr.Name), cr.Tenant, strings.ReplaceAll(string(cr.Kind), "_", " "), state, clean(from), networks, describeLimits(cr.Limits))
	}
	return t.flush()
}

func credentialSetCommand() *cobra.Command {
	var flags credentialFlags
	var secret secretFlags
	var format string
	c := &cobra.Command{
		Use:   "set NAME",
		Short: "Change a credential; what is not given stays",
		Long: `set changes what is given and leaves the rest. A credential keeps its kind:
--new-password and --password-stdin are for passwords, --new-api-key for API
keys, --certificate and --certificate-name for certificates. The old secret
ends at once, and so do the sessions that began with it.`,
		Args: exactly("NAME"),
		RunE: func(c *cobra.Command, args []string) error {
			if c.Flags().NFlag() == 0 {
				return usageError{fmt.Errorf("nothing to change; see %s --help", c.CommandPath())}
			}
			if err := errors.Join(secret.check(), checkFormat(format)); err != nil {
				return err
			}
			var fresh, now store.Credential
			var made credentialLine
			if secret.given() > 0 {
				var err error
				if made, err = secret.apply(c.Context(), c.InOrStdin(), &fresh); err != nil {
					return err
				}
			}
			return withStore(c.Context(), func(db *store.Store) error {
				err := db.ChangeCredential(c.Context(), args[0], func(cr *store.Credential) error {
					if err := replaceSecret(cr, fresh, secret.noSCRAM); err != nil {
						return err
					}
					err := flags.apply(c, cr)
					now = *cr
					return err
				})
				if err != nil {
					return explain(err, "credential", args[0])
				}
				return printMade(c.OutOrStdout(), format, "changed", now, made, false)
			})
		},
	}
	c.Flags().BoolVar(&secret.stdin, "password-stdin", false, "read a new password from the first line of standard input")
	c.Flags().BoolVar(&secret.generate, "new-password", false, "make a new password and print it")
	c.Flags().BoolVar(&secret.apiKey, "new-api-key", false, "make a new API key and print it")
	c.Flags().StringVar(&secret.certificate, "certificate", "", "new client certificate: PEM `file`, or sha256: and its fingerprint in hex")
	c.Flags().StringVar(&secret.certificateName, "certificate-name", "", "new DNS `name` in client certificates")
	noSCRAMFlag(c, &secret)
	flags.add(c)
	outputFlag(c, &format)
	return c
}

func credentialSwitchCommand(verb, short string, disabled bool) *cobra.Command {
	return &cobra.Command{
		Use:   verb + " NAME",
		Short: short,
		Args:  exactly("NAME"),
		RunE: func(c *cobra.Command, args []string) error {
			return withStore(c.Context(), func(db *store.Store) error {
				err := db.ChangeCredential(c.Context(), args[0], func(cr *store.Credential) error { cr.Disabled = disabled; return nil })
				if err != nil {
					return explain(err, "credential", args[0])
				}
				_, err = fmt.Fprintf(c.OutOrStdout(), "%sd credential %s\n", verb, clean(args[0]))
				return err
			})
		},
	}
}

func credentialDeleteCommand() *cobra.Command {
	return &cobra.Command{
		Use:   "delete NAME",
		Short: "Delete a credential, and end its sessions",
		Args:  exactly("NAME"),
		RunE: func(c *cobra.Command, args []string) error {
			return withStore(c.Context(), func(db *store.Store) error {
				if err := db.DeleteCredential(c.Context(), args[0]); err != nil {
					return explain(err, "credential", args[0])
				}
				_, err := fmt.Fprintln(c.OutOrStdout(), "deleted credential", clean(args[0]))
				return err
			})
		},
	}
}

func isNotFound(err error) bool { return errors.Is(err, store.ErrNotFound) }
