package postrider

import (
	"context"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/postrider/postrider/pkg/mail"
	"github.com/postrider/postrider/pkg/store"
	"github.com/postrider/postrider/pkg/telemetry"
)

// storyLine is a message in JSON.
type storyLine struct {
	QueueID     string           `json:"queue_id"`
	TraceID     string           `json:"trace_id,omitempty"`
	ReversePath string           `json:"reverse_path"`
	MessageID   string           `json:"message_id,omitempty"`
	Tenant      string           `json:"tenant,omitempty"`
	Campaign    string           `json:"campaign,omitempty"`
	RequireTLS  bool             `json:"require_tls,omitempty"`
	TLSOptional bool             `json:"tls_optional,omitempty"`
	DeliverBy   string           `json:"deliver_by,omitempty"`
	Client      string           `json:"client,omitempty"`
	Hello       string           `json:"hello,omitempty"`
	Protocol    string           `json:"protocol,omitempty"`
	SizeBytes   int64            `json:"size_bytes"`
	AcceptedAt  *time.Time       `json:"accepted_at"`
	ReportOf    string           `json:"report_of,omitempty"`
	Reports     []string         `json:"reports,omitempty"`
	Recipients  []recipientLine  `json:"recipients"`
	Attempts    []attemptLine    `json:"attempts"`
	Spans       []telemetry.Span `json:"spans,omitempty"`
}

type recipientLine struct {
	No            int32      `json:"no"`
	ForwardPath   string     `json:"forward_path"`
	State         string     `json:"state"`
	Place         string     `json:"place,omitempty"`
	Site          string     `json:"site,omitempty"`
	Waits         string     `json:"waits,omitempty"`
	Tries         int16      `json:"tries"`
	NextAttemptAt *time.Time `json:"next_attempt_at,omitempty"`
	ExpiresAt     *time.Time `json:"expires_at"`
	FinalAt       *time.Time `json:"final_at,omitempty"`
}

type attemptLine struct {
	StartedAt     *time.Time `json:"started_at"`
	DurationMS    float64    `json:"duration_ms"`
	Recipients    []int32    `json:"recipients"`
	Attempt       int32      `json:"attempt"`
	Action        string     `json:"action"`
	Phase         string     `json:"phase"`
	Status        string     `json:"status,omitempty"`
	Reply         string     `json:"reply,omitempty"`
	Host          string     `json:"host,omitempty"`
	Remote        string     `json:"remote,omitempty"`
	Local         string     `json:"local,omitempty"`
	Source        string     `json:"source,omitempty"`
	TLS           string     `json:"tls,omitempty"`
	Site          string     `json:"site,omitempty"`
	Worker        int32      `json:"worker_id,omitempty"`
	NextAttemptAt *time.Time `json:"next_attempt_at,omitempty"`
	Uncertain     bool       `json:"uncertain,omitempty"`
	Untried       bool       `json:"untried,omitempty"`
}

func showCommand() *cobra.Command {
	var format string
	c := &cobra.Command{
		Use:   "show QUEUE-ID",
		Short: "Tell the story of a message: acceptance, every attempt and reply, reports, trace",
		Args:  exactly("QUEUE-ID"),
		RunE: func(c *cobra.Command, args []string) error {
			id, err := mail.ParseQueueID(args[0])
			if err != nil {
				return usageError{err}
			}
			return withStore(c.Context(), func(db *store.Store) error { return show(c.Context(), c.OutOrStdout(), db, id, format) })
		},
	}
	outputFlag(c, &format)
	return c
}

func show(ctx context.Context, w io.Writer, db *store.Store, id mail.QueueID, format string) error {
	story, err := db.Show(ctx, id)
	if errors.Is(err, store.ErrNotFound) {
		return fmt.Errorf("%s: no such message, or its history was dropped", id)
	}
	if err != nil {
		return err
	}
	line := lineOf(story)
	file, err := spanFile()
	if err != nil {
		return err
	}
	if line.Spans, err = telemetry.ReadSpans(file, line.TraceID); err != nil {
		return err
	}
	return printAs(format, w, line, func() error { return printStory(w, line) })
}

func lineOf(s store.Story) storyLine {
	m := s.Message
	line := storyLine{
		QueueID: m.ID.String(), ReversePath: m.Envelope.ReversePath.String(), MessageID: s.HeaderID,
		Tenant: m.Tenant, Campaign: m.Campaign, RequireTLS: m.Envelope.RequireTLS, TLSOptional: m.TLSOptional,
		Hello: s.Client.Hello, Protocol: s.Client.Protocol, SizeBytes: m.SizeBytes, AcceptedAt: moment(m.AcceptedAt),
		Recipients: []recipientLine{}, Attempts: []attemptLine{}, // [] in JSON, never null
	}
	if parts := strings.Split(m.Traceparent, "-"); len(parts) > 1 {
		line.TraceID = parts[1]
	}
	if by := m.Envelope.DeliverBy; !by.At.IsZero() {
		line.DeliverBy = clock(by.At) + ", else " + afterBy(by)
	}
	if s.Client.Address.IsValid() {
		line.Client = s.Client.Address.String()
	}
	if !s.ReportOf.IsZero() {
		line.ReportOf = s.ReportOf.String()
	}
	for _, id := range s.Reports {
		line.Reports = append(line.Reports, id.String())
	}
	for _, r := range s.Recipients {
		line.Recipients = append(line.Recipients, recipientLine{
			r.No, r.ForwardPath.String(), r.State, r.Place, r.Site, r.Waits, r.Tries, moment(r.NextAttemptAt), moment(r.ExpiresAt), moment(r.FinalAt),
		})
	}
	for _, a := range s.Attempts {
		l := attemptLine{
			StartedAt: moment(a.StartedAt), DurationMS: float64(a.Duration.Microseconds()) / 1000, Recipients: a.RecipientNos,
			Attempt: a.Attempt, Action: string(a.Action), Phase: string(a.Phase), Status: a.Status, Reply: a.Reply, Host: a.Host,
			TLS: a.TLS, Site: string(a.Site), Source: a.Source, Worker: int32(a.Worker), NextAttemptAt: moment(a.NextAttemptAt),
			Uncertain: a.Uncertain, Untried: a.Untried,
		}
		if a.Remote.IsValid() {
			l.Remote = a.Remote.String()
		}
		if a.Local.IsValid() {
			l.Local = a.Local.String()
		}
		line.Attempts = append(line.Attempts, l)
	}
	return line
}

// story prints a message for people: where it stands, then what happened in
// the order of time, as distances from its acceptance.
type story struct {
	w   io.Writer
	at0 time.Time
	err error // the first of writing
}

func (p *story) line(format string, args ...any) {
	if p.err == nil {
		_, p.err = fmt.Fprintf(p.w, format+"\n", args...)
	}
}

func (p *story) event(at time.Time, format string, args ...any) {
	p.line("  %9s  "+format, append([]any{distance(at.Sub(p.at0))}, args...)...)
}

// distance prints when something happened. The trace of a report begins
// before it, with the message that it is about.
func distance(d time.Duration) string {
	if d < 0 {
		return span(d)
	}
	return "+" + span(d)
}

// afterBy says what becomes of a message that has not left by its time: RFC
// 2852 §4.
func afterBy(by mail.DeliverBy) string {
	if by.Return {
		return "it is returned"
	}
	return "its sender is told"
}

// facts are what the client said of the message, as far as it said it.
func (s *storyLine) facts() (facts [][2]string) {
	if s.Tenant != "" {
		facts = append(facts, [2]string{"tenant", s.Tenant})
	}
	if s.Campaign != "" {
		facts = append(facts, [2]string{"campaign", s.Campaign})
	}
	if s.RequireTLS {
		facts = append(facts, [2]string{"TLS", "required (RFC 8689)"})
	}
	if s.TLSOptional {
		facts = append(facts, [2]string{"TLS", "not required, whatever the domain says (RFC 8689)"})
	}
	if s.DeliverBy != "" {
		facts = append(facts, [2]string{"by", s.DeliverBy})
	}
	return facts
}

func printStory(w io.Writer, s storyLine) error {
	p := &story{w: w, at0: *s.AcceptedAt}
	p.line("message %s, accepted %s", s.QueueID, clock(*s.AcceptedAt))
	from := clean(s.ReversePath)
	if s.Client != "" {
		from += fmt.Sprintf(" by %s (%s %s)", s.Client, s.Protocol, clean(s.Hello))
	}
	p.line("  from     %s, %d bytes", from, s.SizeBytes)
	if s.MessageID != "" {
		p.line("  field    Message-ID: %s", clean(s.MessageID))
	}
	for _, fact := range s.facts() {
		p.line("  %-8s %s", fact[0], clean(fact[1]))
	}
	if s.TraceID != "" {
		p.line("  trace    %s", s.TraceID)
	}
	if s.ReportOf != "" {
		p.line("  report   about %s", s.ReportOf)
	}
	for _, r := range s.Recipients {
		p.line("  to %-5d %s: %s", r.No, clean(r.ForwardPath), p.standing(r))
	}
	p.line("\nwhat happened")
	p.event(p.at0, "accepted, %d recipients", len(s.Recipients))
	for _, a := range s.Attempts {
		p.attempt(a)
	}
	for _, id := range s.Reports {
		at := p.at0
		if report, err := mail.ParseQueueID(id); err == nil {
			at = report.Time()
		}
		p.event(at, "reported to the sender by message %s", id)
	}
	if len(s.Spans) > 0 {
		p.line("\ntrace")
		p.trace(s.Spans)
	}
	return p.err
}

func (p *story) standing(r recipientLine) string {
	text := r.State
	switch {
	case r.FinalAt != nil:
		text += " after " + span(r.FinalAt.Sub(p.at0))
	case r.Place != "" && r.Place != r.State:
		text += ", " + r.Place
	}
	if r.Waits != "" {
		text += ": " + clean(r.Waits)
	}
	if r.NextAttemptAt != nil {
		text += ", next attempt " + clock(*r.NextAttemptAt)
	}
	if r.FinalAt == nil {
		text += ", expires " + clock(*r.ExpiresAt)
	}
	return text
}

func (p *story) attempt(a attemptLine) {
	text := fmt.Sprintf("to %s: %s", numbers(a.Recipients), a.Action)
	if a.Attempt > 0 { // else it never came to a worker
		text = fmt.Sprintf("attempt %d, ", a.Attempt) + text
	}
	if a.Untried {
		text += " without a try"
	}
	text += " at " + a.Phase
	if a.Reply != "" {
		text += ": " + clean(a.Reply)
	} else if a.Status != "" {
		text += ": " + a.Status
	}
	p.event(*a.StartedAt, "%s", text)
	if a.Host != "" {
		security := a.TLS
		if security == "" {
			security = "no TLS"
		}
		from := ""
		if a.Source != "" {
			from = " from " + clean(a.Source)
		}
		p.line("             host %s [%s]%s, %s, site %s, took %s", clean(a.Host), a.Remote, from, security, clean(a.Site),
			span(time.Duration(a.DurationMS*float64(time.Millisecond))))
	}
	if a.Uncertain {
		p.line("             uncertain: the remote host may have taken the message, so there may be a duplicate (RFC 1047)")
	}
	if a.NextAttemptAt != nil {
		p.line("             next attempt %s", clock(*a.NextAttemptAt))
	}
}

// numbers prints recipient numbers, runs as ranges.
func numbers(nos []int32) string {
	nos = slices.Sorted(slices.Values(nos))
	var parts []string
	for i := 0; i < len(nos); {
		j := i
		for j+1 < len(nos) && nos[j+1] == nos[j]+1 {
			j++
		}
		if i == j {
			parts = append(parts, fmt.Sprint(nos[i]))
		} else {
			parts = append(parts, fmt.Sprintf("%d-%d", nos[i], nos[j]))
		}
		i = j + 1
	}
	return strings.Join(parts, ",")
}

// trace prints spans as a tree: children under their parent, by start.
func (p *story) trace(spans []telemetry.Span) {
	children := map[string][]telemetry.Span{}
	known := map[string]bool{}
	for _, s := range spans {
		known[s.SpanID] = true
	}
	for _, s := range spans {
		parent := s.ParentID
		if !known[parent] {
			parent = "" // a root, or its parent is elsewhere
		}
		children[parent] = append(children[parent], s)
	}
	p.branch(children, "", 0)
}

func (p *story) branch(children map[string][]telemetry.Span, parent string, depth int) {
	for _, s := range children[parent] {
		note := ""
		if s.Error != "" {
			note = "  " + clean(s.Error)
		}
		p.event(s.Start, "%-34s %8s%s", strings.Repeat("  ", depth)+s.Name, span(s.End.Sub(s.Start)), note)
		for _, e := range s.Events {
			p.event(e.Time, "%s- %s%s", strings.Repeat("  ", depth+1), clean(e.Name), attributes(e.Attributes))
		}
		p.branch(children, s.SpanID, depth+1)
	}
}

func attributes(m map[string]any) string {
	keys := make([]string, 0, len(m))
	for k := range m {
		keys = append(keys, k)
	}
	slices.Sort(keys)
	var b strings.Builder
	for _, k := range keys {
		fmt.Fprintf(&b, " %s=%s", k, clean(fmt.Sprint(m[k])))
	}
	return b.String()
}
