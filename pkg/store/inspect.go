package store

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/postrider/postrider/pkg/mail"
)

// Filter chooses recipients of the queue. Empty fields do not matter; all
// others must match. In addresses * stands for any text, and case does not
// matter.
type Filter struct {
	ID              mail.QueueID
	Domain          string
	ReversePath     string
	NullReversePath bool // reports: mail from <>
	ForwardPath     string
	Site            string
	Tenant          string
	Campaign        string
	OlderThan       time.Duration // since it was accepted
	LastReply       string        // that has this text in it, in any case
	Place           string        // as in QueueRow; for Queue alone
	Everything      bool          // the whole queue is meant where nothing else is said
}

// args returns the filter as the arguments of the operators' functions, null
// where nothing was asked.
func (f Filter) args() pgx.NamedArgs {
	args := pgx.NamedArgs{"id": nil, "older": nil, "everything": f.Everything}
	if !f.ID.IsZero() {
		args["id"] = f.ID
	}
	if f.OlderThan > 0 {
		args["older"] = f.OlderThan
	}
	for name, value := range map[string]string{
		"domain": f.Domain, "from": f.ReversePath, "to": f.ForwardPath, "site": f.Site, "tenant": f.Tenant, "campaign": f.Campaign, "reply": f.LastReply,
	} {
		args[name] = nil
		if value != "" {
			args[name] = value
		}
	}
	if f.NullReversePath {
		args["from"] = ""
	}
	return args
}

// Places returns what QueueRow.Place may be.
func Places() []string { return []string{"waiting", "parked", "claimed", "in transaction", "held"} }

// QueueRow is a row of view postrider.queue: a recipient without a final
// state.
type QueueRow struct {
	ID            mail.QueueID
	RecipientNo   int32
	State         string // queued or held
	Place         string // one of Places
	ReversePath   mail.ReversePath
	ForwardPath   mail.ForwardPath
	Campaign      string // "" for none
	Site          string // "" before the first route
	Tries         int16
	AcceptedAt    time.Time
	NextAttemptAt time.Time // zero unless it waits
	ExpiresAt     time.Time
	LastStatus    string // of the last attempt; "" before the first
	LastReply     string // with its code
	LastHost      string
	Suspended     string // by whom, until when and why it is kept waiting; "" if it is not
}

// Queue returns up to limit recipients of the queue, oldest first; all of
// them if limit is 0.
func (s *Store) Queue(ctx context.Context, f Filter, limit int) ([]QueueRow, error) {
	const q = `
		SELECT queue_id, recipient_no, state::text, place, reverse_path, forward_path, coalesce(site, ''), tries,
		       accepted_at, next_attempt_at, expires_at, coalesce(last_status, ''), coalesce(last_reply, ''), coalesce(last_host, ''), campaign,
		       coalesce(suspended, ` + waitOf + `, '')
		FROM queue q
		WHERE (@id::uuid IS NULL OR queue_id = @id)
		  AND (@domain::text IS NULL OR domain = lower(@domain))
		  AND (@from::text IS NULL OR lower(reverse_path) LIKE pattern_of(@from))
		  AND (@to::text IS NULL OR lower(forward_path) LIKE pattern_of(@to))
		  AND (@site::text IS NULL OR site_within(site, @site))
		  AND (@tenant::text IS NULL OR tenant = @tenant)
		  AND (@campaign::text IS NULL OR campaign = @campaign)
		  AND (@older::interval IS NULL OR accepted_at < now() - @older)
		  AND (@reply::text IS NULL OR strpos(lower(last_reply), lower(@reply)) > 0)
		  AND (@place::text = '' OR place = @place)
		ORDER BY queue_id, recipient_no
		LIMIT nullif(@limit, 0)`
	args := f.args()
	args["limit"], args["place"] = limit, f.Place
	rows, err := s.plain.Query(ctx, q, args)
	if err != nil {
		return nil, fmt.Errorf("queue: %w", err)
	}
	found, err := pgx.CollectRows(rows, func(row pgx.CollectableRow) (r QueueRow, err error) {
		var next *time.Time
		err = row.Scan(&r.ID, &r.RecipientNo, &r.State, &r.Place, &r.ReversePath, &r.ForwardPath, &r.Site, &r.Tries,
			&r.AcceptedAt, &next, &r.ExpiresAt, &r.LastStatus, &r.LastReply, &r.LastHost, &r.Campaign, &r.Suspended)
		if next != nil {
			r.NextAttemptAt = *next
		}
		return r, err
	})
	if err != nil {
		return nil, fmt.Errorf("queue: %w", err)
	}
	return found, nil
}

// SiteRow is a row of view postrider.queue_by_site.
type SiteRow struct {
	Site                                       string // "" before the first route
	Recipients, Held, Waiting, Parked, Claimed int64
	OldestAcceptedAt                           time.Time
	SuspendedUntil                             time.Time // zero: not suspended
	SuspendReason                              string
}

// QueueBySite sums the queue by site, the fullest first.
func (s *Store) QueueBySite(ctx context.Context) ([]SiteRow, error) {
	const q = `
		SELECT site, recipients, held, waiting, parked, claimed, oldest_accepted_at, suspended_until, coalesce(suspend_reason, '')
		FROM queue_by_site
		ORDER BY recipients DESC, site`
	rows, err := s.plain.Query(ctx, q)
	if err != nil {
		return nil, fmt.Errorf("queue by site: %w", err)
	}
	found, err := pgx.CollectRows(rows, func(row pgx.CollectableRow) (r SiteRow, err error) {
		var until *time.Time
		err = row.Scan(&r.Site, &r.Recipients, &r.Held, &r.Waiting, &r.Parked, &r.Claimed, &r.OldestAcceptedAt, &until, &r.SuspendReason)
		if until != nil {
			r.SuspendedUntil = *until
		}
		return r, err
	})
	if err != nil {
		return nil, fmt.Errorf("queue by site: %w", err)
	}
	return found, nil
}

// Story is all that is kept of one message, for people.
type Story struct {
	Message    mail.Message
	Client     mail.Client
	HeaderID   string       // the Message-ID field
	ReportOf   mail.QueueID // set: this message is a DSN about that one
	Reports    []mail.QueueID
	Recipients []StoryRecipient
	Attempts   []StoryAttempt // oldest first
}

// StoryRecipient is where a recipient stands.
type StoryRecipient struct {
	No            int32
	ForwardPath   mail.ForwardPath
	State         string
	Place         string // as in QueueRow; "" when final
	Site          string
	Waits         string // by whom, until when and why it is kept waiting; "" if it is not
	Tries         int16
	NextAttemptAt time.Time // zero unless it waits
	ExpiresAt     time.Time
	FinalAt       time.Time // zero unless final
}

// StoryAttempt is what one transaction said about the recipients that it
// treated alike.
type StoryAttempt struct {
	mail.Transaction
	RecipientNos  []int32
	Attempt       int32
	Action        mail.Action
	Phase         mail.Phase
	Status        string
	Reply         string // with its code
	NextAttemptAt time.Time
	Uncertain     bool
	Untried       bool
	Worker        mail.WorkerID // 0: none
}

// Show returns the story of a message. ErrNotFound: it was never accepted,
// or its history was dropped.
func (s *Store) Show(ctx context.Context, id mail.QueueID) (Story, error) {
	story, err := s.showMessage(ctx, id)
	if errors.Is(err, pgx.ErrNoRows) {
		return Story{}, ErrNotFound
	}
	if err != nil {
		return Story{}, fmt.Errorf("show %s: %w", id, err)
	}
	for _, part := range []func(context.Context, *Story) error{s.showRecipients, s.showAttempts, s.showReports} {
		if err := part(ctx, &story); err != nil {
			return Story{}, fmt.Errorf("show %s: %w", id, err)
		}
	}
	return story, nil
}

func (s *Store) showMessage(ctx context.Context, id mail.QueueID) (Story, error) {
	const q = `
		SELECT accepted_at, size_bytes, priority, smtputf8, report_of, reverse_path, tenant, body_type, ret, envid,
		       traceparent, message_id, client_address, client_hello, protocol, trust,
		       campaign, require_tls, tls_optional, deliver_by, deliver_by_mode
		FROM messages
		WHERE queue_id = $1`
	story := Story{Message: mail.Message{ID: id}}
	m, e := &story.Message, &story.Message.Envelope
	var reportOf *mail.QueueID
	var client string
	err := s.plain.QueryRow(ctx, q, id).Scan(&m.AcceptedAt, &m.SizeBytes, &m.Priority, &e.SMTPUTF8, &reportOf, &e.ReversePath,
		&m.Tenant, &e.Body, &e.Ret, &e.EnvID, &m.Traceparent, &story.HeaderID, &client, &story.Client.Hello, &story.Client.Protocol, &story.Client.Trust,
		&m.Campaign, &e.RequireTLS, &m.TLSOptional, deliverByTime{&e.DeliverBy}, deliverByWords{&e.DeliverBy})
	if err != nil {
		return Story{}, err
	}
	if reportOf != nil {
		story.ReportOf = *reportOf
	}
	if client != "" {
		if story.Client.Address, err = netip.ParseAddr(client); err != nil {
			return Story{}, fmt.Errorf("client address: %w", err)
		}
	}
	return story, nil
}

func (s *Store) showRecipients(ctx context.Context, story *Story) error {
	const q = `
		SELECT r.recipient_no, r.forward_path, r.state::text, coalesce(q.place, ''), coalesce(r.site, ''), r.tries,
		       q.next_attempt_at, r.expires_at, r.final_at, coalesce(q.suspended, ` + waitOf + `, '')
		FROM recipients r
		LEFT JOIN queue q ON q.queue_id = r.queue_id AND q.recipient_no = r.recipient_no
		WHERE r.queue_id = $1
		ORDER BY r.recipient_no`
	rows, err := s.plain.Query(ctx, q, story.Message.ID)
	if err != nil {
		return err
	}
	story.Recipients, err = pgx.CollectRows(rows, func(row pgx.CollectableRow) (r StoryRecipient, err error) {
		var next, final *time.Time
		err = row.Scan(&r.No, &r.ForwardPath, &r.State, &r.Place, &r.Site, &r.Tries, &next, &r.ExpiresAt, &final, &r.Waits)
		if next != nil {
			r.NextAttemptAt = *next
		}
		if final != nil {
			r.FinalAt = *final
		}
		return r, err
	})
	return err
}

func (s *Store) showAttempts(ctx context.Context, story *Story) error {
	const q = `
		SELECT recipient_nos, attempt, action, phase, status, reply_code, reply, uncertain, untried, coalesce(worker_id, 0),
		       started_at, duration, next_attempt_at, host, remote, local, tls, site, source
		FROM attempts
		WHERE queue_id = $1
		ORDER BY started_at, attempt, recipient_nos`
	rows, err := s.plain.Query(ctx, q, story.Message.ID)
	if err != nil {
		return err
	}
	story.Attempts, err = pgx.CollectRows(rows, func(row pgx.CollectableRow) (a StoryAttempt, err error) {
		var code int16
		var next *time.Time
		var remote, local string
		err = row.Scan(&a.RecipientNos, &a.Attempt, &a.Action, &a.Phase, &a.Status, &code, &a.Reply, &a.Uncertain, &a.Untried, &a.Worker,
			&a.StartedAt, &a.Duration, &next, &a.Host, &remote, &local, &a.TLS, &a.Site, &a.Source)
		if err != nil {
			return a, err
		}
		if code != 0 {
			a.Reply = fmt.Sprintf("%d %s", code, a.Reply)
		}
		if next != nil {
			a.NextAttemptAt = *next
		}
		if a.Remote, err = addrPort(remote); err != nil {
			return a, err
		}
		a.Local, err = addrPort(local)
		return a, err
	})
	return err
}

// showReports finds the DSNs about the message, which are younger than it.
func (s *Store) showReports(ctx context.Context, story *Story) error {
	const q = `
		SELECT queue_id
		FROM messages
		WHERE report_of = $1 AND queue_id > $1
		ORDER BY queue_id`
	rows, err := s.plain.Query(ctx, q, story.Message.ID)
	if err != nil {
		return err
	}
	story.Reports, err = pgx.CollectRows(rows, pgx.RowTo[mail.QueueID])
	return err
}

// addrPort reads an address:port column; "" is none.
func addrPort(text string) (netip.AddrPort, error) {
	if text == "" {
		return netip.AddrPort{}, nil
	}
	return netip.ParseAddrPort(text)
}
