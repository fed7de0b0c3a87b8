package postrider

import (
	"fmt"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/postrider/postrider/pkg/auth"
	"github.com/postrider/postrider/pkg/store"
)

// domainLine is a domain in JSON.
type domainLine struct {
	Domain    string     `json:"domain"`
	Tenant    string     `json:"tenant"`
	CreatedAt *time.Time `json:"created_at"`
}

func domainCommand() *cobra.Command {
	parent := &cobra.Command{
		Use:   "domain",
		Short: "Domains in whose name a tenant may send",
		Long: `A domain belongs to one tenant. The tenant's credentials may use it in the
reverse-path (MAIL FROM) and in the From field, unless they name addresses of
their own. *.example.com stands for every name below example.com, and not for
example.com itself.`,
	}
	var tenant, ofTenant, format string
	add := &cobra.Command{
		Use:   "add DOMAIN",
		Short: "Give a domain to a tenant",
		Args:  exactly("DOMAIN"),
		RunE: func(c *cobra.Command, args []string) error {
			domain, err := domainPattern(args[0])
			if err != nil {
				return err
			}
			return withStore(c.Context(), func(db *store.Store) error {
				err := db.AddDomain(c.Context(), store.TenantDomain{Domain: domain, Tenant: tenant})
				if isNotFound(err) {
					return explain(err, "tenant", tenant)
				}
				if err != nil {
					return explain(err, "domain", domain)
				}
				_, err = fmt.Fprintf(c.OutOrStdout(), "tenant %s may send in the name of %s\n", tenant, domain)
				return err
			})
		},
	}
	tenantFlag(add, &tenant)
	list := &cobra.Command{
		Use:   "list",
		Short: "List the domains",
		Args:  exactly(),
		RunE: func(c *cobra.Command, _ []string) error {
			return withStore(c.Context(), func(db *store.Store) error {
				domains, err := db.Domains(c.Context(), ofTenant)
				if err != nil {
					return err
				}
				lines := make([]domainLine, len(domains))
				for i, d := range domains {
					lines[i] = domainLine{d.Domain, d.Tenant, moment(d.CreatedAt)}
				}
				return printAs(format, c.OutOrStdout(), lines, func() error {
					t := newTable(c.OutOrStdout(), "DOMAIN", "TENANT")
					for _, l := range lines {
						t.row(l.Domain, l.Tenant)
					}
					return t.flush()
				})
			})
		},
	}
	list.Flags().StringVar(&ofTenant, "tenant", "", "only those of this tenant")
	outputFlag(list, &format)
	remove := &cobra.Command{
		Use:   "delete DOMAIN",
		Short: "Take a domain from its tenant",
		Args:  exactly("DOMAIN"),
		RunE: func(c *cobra.Command, args []string) error {
			domain, err := domainPattern(args[0])
			if err != nil {
				return err
			}
			return withStore(c.Context(), func(db *store.Store) error {
				if err := db.DeleteDomain(c.Context(), domain); err != nil {
					return explain(err, "domain", domain)
				}
				_, err := fmt.Fprintln(c.OutOrStdout(), "deleted domain", domain)
				return err
			})
		},
	}
	return group(parent, add, list, remove)
}

// domainPattern reads a domain, or the names below one.
func domainPattern(text string) (string, error) {
	domain, err := auth.ParsePattern(text)
	if err != nil || domain == "*" || strings.Contains(domain, "@") {
		return "", usageError{fmt.Errorf("domain %q, want example.com or *.example.com", text)}
	}
	return domain, nil
}

// tenantFlag adds --tenant, which must be given.
func tenantFlag(c *cobra.Command, tenant *string) {
	c.Flags().StringVar(tenant, "tenant", "", "tenant that it belongs to (required)")
	c.PreRunE = func(c *cobra.Command, _ []string) error {
		if *tenant == "" {
			return usageError{fmt.Errorf("--tenant is missing; see %s --help", c.CommandPath())}
		}
		return nil
	}
}
