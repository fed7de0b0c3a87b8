package postrider

import (
	"cmp"
	"context"
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

// filterFlags are the flags that choose recipients.
type filterFlags struct {
	store.Filter
	id string
}

func (f *filterFlags) add(c *cobra.Command) {
	c.Flags().StringVar(&f.id, "id", "", "queue id of the message")
	c.Flags().StringVar(&f.Domain, "domain", "", "domain of the forward-path")
	c.Flags().StringVar(&f.ReversePath, "from", "", "reverse-path, * for any text in it; <> for reports")
	c.Flags().StringVar(&f.ForwardPath, "to", "", "forward-path, * for any text in it")
	c.Flags().StringVar(&f.Site, "site", "", "site, as in the queue")
	c.Flags().StringVar(&f.Tenant, "tenant", "", "tenant")
	c.Flags().StringVar(&f.Campaign, "campaign", "", "campaign")
	c.Flags().TextVar((*retry.Duration)(&f.OlderThan), "older-than", retry.Duration(0), "accepted at least so long ago, such as 30m or 2d")
	c.Flags().StringVar(&f.LastReply, "reply", "", "text in the last reply, such as 421 or \"rate limited\"")
}

func (f *filterFlags) filter() (store.Filter, error) {
	filter := f.Filter
	filter.ReversePath, filter.ForwardPath = bare(f.ReversePath), bare(f.ForwardPath)
	if f.ReversePath == "<>" {
		filter.NullReversePath = true
	}
	if f.id == "" {
		return filter, nil
	}
	id, err := mail.ParseQueueID(f.id)
	if err != nil {
		return filter, usageError{err}
	}
	filter.ID = id
	return filter, nil
}

// bare is a path without the angle brackets that it may have in a log.
func bare(path string) string {
	return strings.TrimSuffix(strings.TrimPrefix(path, "<"), ">")
}

// queueLine is a recipient of the queue in JSON.
type queueLine struct {
	QueueID       string     `json:"queue_id"`
	RecipientNo   int32      `json:"recipient_no"`
	State         string     `json:"state"`
	Place         string     `json:"place"`
	ReversePath   string     `json:"reverse_path"`
	ForwardPath   string     `json:"forward_path"`
	Campaign      string     `json:"campaign,omitempty"`
	Site          string     `json:"site,omitempty"`
	Tries         int16      `json:"tries"`
	AcceptedAt    *time.Time `json:"accepted_at"`
	NextAttemptAt *time.Time `json:"next_attempt_at,omitempty"`
	ExpiresAt     *time.Time `json:"expires_at"`
	LastStatus    string     `json:"last_status,omitempty"`
	LastReply     string     `json:"last_reply,omitempty"`
	LastHost      string     `json:"last_host,omitempty"`
	Suspended     string     `json:"suspended,omitempty"`
}

func queueCommand() *cobra.Command {
	var flags filterFlags
	var limit int
	var format string
	c := &cobra.Command{
		Use:   "queue",
		Short: "List the recipients that have no final state yet, oldest first",
		Args:  exactly(),
		RunE: func(c *cobra.Command, _ []string) error {
			if c.Flags().Changed("place") && !slices.Contains(store.Places(), flags.Place) {
				return usageError{fmt.Errorf("--place %q, want one of: %s", flags.Place, strings.Join(store.Places(), ", "))}
			}
			filter, err := flags.filter()
			if err != nil {
				return err
			}
			return withStore(c.Context(), func(db *store.Store) error {
				rows, err := db.Queue(c.Context(), filter, limit+min(limit, 1))
				if err != nil {
					return err
				}
				more := limit > 0 && len(rows) > limit
				if more {
					rows = rows[:limit]
				}
				lines := make([]queueLine, len(rows))
				for i, r := range rows {
					lines[i] = queueLine{
						r.ID.String(), r.RecipientNo, r.State, r.Place, string(r.ReversePath), string(r.ForwardPath), r.Campaign, r.Site, r.Tries,
						moment(r.AcceptedAt), moment(r.NextAttemptAt), moment(r.ExpiresAt), r.LastStatus, r.LastReply, r.LastHost, r.Suspended,
					}
				}
				if err := printAs(format, c.OutOrStdout(), lines, func() error { return printQueue(c.OutOrStdout(), rows, filter) }); err != nil || !more {
					return err
				}
				_, err = fmt.Fprintf(c.ErrOrStderr(), "the first %d recipients; there are more: -n NUMBER shows so many, -n 0 all\n", limit)
				return err
			})
		},
	}
	flags.add(c)
	outputFlag(c, &format)
	c.Flags().StringVar(&flags.Place, "place", "", "waiting, parked, claimed, \"in transaction\" or held")
	c.Flags().IntVarP(&limit, "limit", "n", 100, "at most so many recipients; 0 for all")
	return c
}

func printQueue(w io.Writer, rows []store.QueueRow, filter store.Filter) error {
	if len(rows) == 0 {
		said := "nothing is queued"
		if filter != (store.Filter{}) {
			said = "nothing that is queued matches"
		}
		_, err := fmt.Fprintln(w, said)
		return err
	}
	t := newTable(w, "QUEUE ID", "NO", "AGE", "PLACE", "TRIES", "NEXT", "TO", "SITE", "LAST REPLY, OR WHY IT WAITS")
	for _, r := range rows {
		next := ""
		if !r.NextAttemptAt.IsZero() {
			next = "now"
			if wait := time.Until(r.NextAttemptAt); wait > 0 {
				next = "in " + span(wait)
			}
		}
		t.row(r.ID.String(), fmt.Sprint(r.RecipientNo), span(time.Since(r.AcceptedAt)), r.Place, fmt.Sprint(r.Tries), next,
			clean(string(r.ForwardPath)), clean(r.Site), clean(cmp.Or(r.Suspended, r.LastReply)))
	}
	return t.flush()
}

// siteLine is a site in JSON.
type siteLine struct {
	Site             string     `json:"site"`
	Recipients       int64      `json:"recipients"`
	Waiting          int64      `json:"waiting"`
	Parked           int64      `json:"parked"`
	Claimed          int64      `json:"claimed"`
	Held             int64      `json:"held"`
	OldestAcceptedAt *time.Time `json:"oldest_accepted_at"`
	SuspendedUntil   *time.Time `json:"suspended_until,omitempty"`
	SuspendReason    string     `json:"suspend_reason,omitempty"`
}

func siteCommand() *cobra.Command {
	var format string
	list := &cobra.Command{
		Use:   "list",
		Short: "Sum the queue by site, the fullest first",
		Args:  exactly(),
		RunE: func(c *cobra.Command, _ []string) error {
			return withStore(c.Context(), func(db *store.Store) error {
				rows, err := db.QueueBySite(c.Context())
				if err != nil {
					return err
				}
				lines := make([]siteLine, len(rows))
				for i, r := range rows {
					lines[i] = siteLine{r.Site, r.Recipients, r.Waiting, r.Parked, r.Claimed, r.Held,
						moment(r.OldestAcceptedAt), moment(r.SuspendedUntil), r.SuspendReason}
				}
				return printAs(format, c.OutOrStdout(), lines, func() error { return printSites(c.OutOrStdout(), rows) })
			})
		},
	}
	outputFlag(list, &format)
	var reason string
	var wait time.Duration
	suspend := &cobra.Command{
		Use:   "suspend SITE",
		Short: "Stop transactions with a site for a while; its mail stays queued",
		Args:  exactly("SITE"),
		RunE: func(c *cobra.Command, args []string) error {
			return withStore(c.Context(), func(db *store.Store) error {
				n, err := db.SuspendSite(c.Context(), mail.Site(args[0]), wait, reason)
				if err != nil {
					return err
				}
				_, err = fmt.Fprintf(c.OutOrStdout(), "suspended for %s; %d recipients wait\n", span(wait), n)
				return err
			})
		},
	}
	forFlag(suspend, &wait)
	suspend.Flags().StringVar(&reason, "reason", "", "why, for those who look later")
	resume := &cobra.Command{
		Use:   "resume SITE",
		Short: "End a suspension early",
		Args:  exactly("SITE"),
		RunE: func(c *cobra.Command, args []string) error {
			return withStore(c.Context(), func(db *store.Store) error {
				resumed, err := db.ResumeSite(c.Context(), mail.Site(args[0]))
				if err != nil {
					return err
				}
				if !resumed {
					return fmt.Errorf("site %s is not suspended", args[0])
				}
				_, err = fmt.Fprintln(c.OutOrStdout(), "resumed")
				return err
			})
		},
	}
	return group(&cobra.Command{Use: "site", Short: "Show the queue by site; suspend and resume sites"}, list, suspend, resume)
}

func printSites(w io.Writer, rows []store.SiteRow) error {
	if len(rows) == 0 {
		_, err := fmt.Fprintln(w, "nothing is queued")
		return err
	}
	t := newTable(w, "SITE", "RECIPIENTS", "WAITING", "PARKED", "CLAIMED", "HELD", "OLDEST", "SUSPENDED")
	for _, r := range rows {
		suspended := ""
		if !r.SuspendedUntil.IsZero() {
			suspended = "for " + span(time.Until(r.SuspendedUntil)) + " " + clean(r.SuspendReason)
		}
		site := r.Site
		if site == "" {
			site = "(no route yet)"
		}
		t.row(clean(site), fmt.Sprint(r.Recipients), fmt.Sprint(r.Waiting), fmt.Sprint(r.Parked), fmt.Sprint(r.Claimed), fmt.Sprint(r.Held),
			span(time.Since(r.OldestAcceptedAt)), suspended)
	}
	return t.flush()
}

// operateCommands are the actions on the queue. Each changes all recipients
// that meet every filter and are in no transaction at this moment.
func operateCommands() []*cobra.Command {
	var all []*cobra.Command
	for _, op := range []struct {
		op    store.Operation
		short string
		said  string
	}{
		{store.Hold, "Keep recipients from being tried until released", "held"},
		{store.Release, "End a hold", "released"},
		{store.Retry, "Try recipients now, with a fresh route", "due now"},
		{store.Fail, "End recipients as failed; their senders get a DSN", "failed"},
		{store.Cancel, "End recipients without a word to their senders", "cancelled"},
	} {
		var flags filterFlags
		var reason string
		var dry bool
		c := &cobra.Command{
			Use:   string(op.op) + " [QUEUE-ID]",
			Short: op.short,
			Args:  atMost("QUEUE-ID"),
			RunE: func(c *cobra.Command, args []string) error {
				if len(args) == 1 {
					if flags.id != "" {
						return usageError{errors.New("give the queue id once")}
					}
					flags.id = args[0]
				}
				filter, err := flags.filter()
				if err != nil {
					return err
				}
				if filter == (store.Filter{}) {
					return usageError{errors.New("say which recipients: a QUEUE-ID or at least one filter; --all for the whole queue")}
				}
				return withStore(c.Context(), func(db *store.Store) error {
					return operate(c, db, op.op, filter, reason, dry, op.said)
				})
			},
		}
		flags.add(c)
		c.Flags().BoolVar(&flags.Everything, "all", false, "the whole queue, as far as other filters do not narrow it")
		c.Flags().BoolVar(&dry, "dry-run", false, "change nothing, and say how many recipients it would be")
		if op.op == store.Fail || op.op == store.Cancel {
			c.Flags().StringVar(&reason, "reason", "ended by an operator", "what history, and the DSN, say")
		}
		all = append(all, c)
	}
	return all
}

// operate does op, or tries it, and says what came of it. It fails if nothing
// in the queue matches at all, and then says what is like it.
func operate(c *cobra.Command, db *store.Store, op store.Operation, filter store.Filter, reason string, dry bool, said string) (err error) {
	var n int64
	if dry {
		n, err = db.WouldOperate(c.Context(), op, filter)
		said = "would be " + said
	} else {
		n, err = db.Operate(c.Context(), op, filter, reason)
	}
	if err != nil {
		return err
	}
	if n == 0 {
		if err := noneOf(c.Context(), db, filter); err != nil {
			return err
		}
		said += "; those that match are in a transaction with a remote host, or stand so already: see " + c.Root().Name() + " queue"
	}
	_, err = fmt.Fprintf(c.OutOrStdout(), "%d recipients %s\n", n, said)
	return err
}

// noneOf returns an error if nothing in the queue matches, with the first
// filter to blame: alone it matches nothing either.
func noneOf(ctx context.Context, db *store.Store, filter store.Filter) error {
	rows, err := db.Queue(ctx, filter, 1)
	if err != nil || len(rows) > 0 {
		return err
	}
	for _, part := range []struct {
		is   bool
		name string
		f    store.Filter
	}{
		{!filter.ID.IsZero(), "the queue id " + filter.ID.String(), store.Filter{ID: filter.ID}},
		{filter.Domain != "", "--domain " + filter.Domain, store.Filter{Domain: filter.Domain}},
		{filter.ReversePath != "", "--from " + filter.ReversePath, store.Filter{ReversePath: filter.ReversePath}},
		{filter.ForwardPath != "", "--to " + filter.ForwardPath, store.Filter{ForwardPath: filter.ForwardPath}},
		{filter.Site != "", "--site " + filter.Site, store.Filter{Site: filter.Site}},
		{filter.Tenant != "", "--tenant " + filter.Tenant, store.Filter{Tenant: filter.Tenant}},
		{filter.Campaign != "", "--campaign " + filter.Campaign, store.Filter{Campaign: filter.Campaign}},
	} {
		if !part.is {
			continue
		}
		if rows, err = db.Queue(ctx, part.f, 1); err != nil {
			return err
		}
		if len(rows) == 0 {
			return fmt.Errorf("nothing that is queued matches %s", clean(part.name))
		}
	}
	return errors.New("nothing that is queued matches")
}

// atMost wants the named arguments or fewer of them.
func atMost(names ...string) cobra.PositionalArgs {
	return func(c *cobra.Command, args []string) error {
		if len(args) > len(names) {
			return usageError{fmt.Errorf("%s wants %s and no more; see %s --help", c.CommandPath(), strings.Join(names, " "), c.CommandPath())}
		}
		return nil
	}
}

// atLeast wants the named arguments or more of the last.
func atLeast(names ...string) cobra.PositionalArgs {
	return func(c *cobra.Command, args []string) error {
		if len(args) < len(names) {
			return exactly(names...)(c, nil)
		}
		return nil
	}
}

// exactly wants the named arguments.
func exactly(names ...string) cobra.PositionalArgs {
	return func(c *cobra.Command, args []string) error {
		if len(args) != len(names) {
			return usageError{fmt.Errorf("%s wants %s; see %s --help", c.CommandPath(), cmp.Or(strings.Join(names, " "), "no arguments"), c.CommandPath())}
		}
		return nil
	}
}
