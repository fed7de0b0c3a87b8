package httpd

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/url"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"golang.org/x/sync/errgroup"

	"github.com/postrider/postrider/pkg/auth"
	"github.com/postrider/postrider/pkg/mail"
	"github.com/postrider/postrider/pkg/store"
	"github.com/postrider/postrider/pkg/storetest"
	"github.com/postrider/postrider/services/ingress/internal/access"
	"github.com/postrider/postrider/services/ingress/internal/commit"
	"github.com/postrider/postrider/services/ingress/internal/spool"
)

func TestMain(m *testing.M) {
	slog.SetDefault(slog.New(slog.DiscardHandler))
	m.Run()
}

// bell counts what is rung for.
type bell struct {
	mu   sync.Mutex
	rung map[mail.QueueID]bool
}

func (b *bell) PublishQueued(_ context.Context, messages []mail.QueuedMessage) error {
	b.mu.Lock()
	defer b.mu.Unlock()
	for _, m := range messages {
		b.rung[m.ID] = true
	}
	return nil
}

func (b *bell) has(id mail.QueueID) bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.rung[id]
}

// world is a server over real HTTP, with a real Postgres and real keys.
type world struct {
	url    string
	server *Server
	store  *store.Store
	db     *pgx.Conn
	bell   *bell
	key    string // of tenant acme, which owns example.com
	narrow string // of tenant acme, but for one reverse-path
	other  string // of tenant other, for any address
}

func testConfig() Config {
	return Config{
		MaxBodyBytes: 1 << 20, MemoryBytes: 16 << 20, MaxConnections: 100, ReadTimeout: 10 * time.Second,
		Hostname: "mx.example", MaxMessageBytes: 8 << 20, MaxRecipients: 100, DrainTimeout: 5 * time.Second,
		Lifetime: func(mail.Domain) time.Duration { return 120 * time.Hour }, ReportLifetime: 24 * time.Hour,
	}
}

func start(t *testing.T, change func(*Config)) *world {
	t.Helper()
	w := &world{bell: &bell{rung: map[mail.QueueID]bool{}}}
	pg := storetest.New(t)
	must := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	var err error
	w.store, err = store.Open(t.Context(), store.Config{URL: pg, MaxConns: 4})
	must(err)
	t.Cleanup(w.store.Close)
	w.db, err = pgx.Connect(t.Context(), pg)
	must(err)
	t.Cleanup(func() { w.db.Close(context.Background()) })
	w.exec(t, "SET search_path = postrider")

	credential := func(tenant, name string, c store.Credential) string {
		key, sum := auth.NewKey()
		c.Name, c.Tenant, c.Kind, c.KeySHA256 = name, tenant, store.APIKeyCredential, sum[:]
		must(w.store.CreateCredential(t.Context(), c))
		return key
	}
	must(w.store.CreateTenant(t.Context(), store.Tenant{Name: "acme", Priority: 4}))
	must(w.store.CreateTenant(t.Context(), store.Tenant{Name: "other"}))
	must(w.store.AddDomain(t.Context(), store.TenantDomain{Domain: "example.com", Tenant: "acme"}))
	w.key = credential("acme", "key", store.Credential{})
	w.narrow = credential("acme", "narrow", store.Credential{ReversePaths: []string{"news@example.com"}, FromDomains: []string{"example.com"}, Limits: store.Limits{RecipientsPerDay: 3}})
	w.other = credential("other", "other", store.Credential{ReversePaths: []string{"*"}})

	keeper, err := access.New(w.store, access.Config{MaxFailures: 10, Parallel: 1})
	must(err)
	cfg := testConfig()
	if change != nil {
		change(&cfg)
	}
	committer := commit.New(w.store, w.bell, 5*time.Second, 2)
	w.server, err = New(cfg, committer, keeper, openSpool(t))
	must(err)
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	must(err)
	w.url = "http://" + listener.Addr().String()
	ctx, stop := context.WithCancel(t.Context())
	var running errgroup.Group
	committing, end := context.WithCancel(context.WithoutCancel(ctx))
	running.Go(func() error { return committer.Run(committing) })
	running.Go(func() error { return keeper.Run(committing) })
	running.Go(func() error { defer end(); return w.server.Serve(ctx, []net.Listener{listener}) })
	t.Cleanup(func() {
		stop()
		if err := running.Wait(); err != nil {
			t.Error(err)
		}
		if held := w.server.budget.Used(); held != 0 {
			t.Errorf("%d bytes of the budget are held at the end", held)
		}
	})
	return w
}

func (w *world) exec(t *testing.T, sql string, args ...any) {
	t.Helper()
	if _, err := w.db.Exec(t.Context(), sql, args...); err != nil {
		t.Fatal(err)
	}
}

func one[T any](t *testing.T, w *world, sql string, args ...any) (v T) {
	t.Helper()
	if err := w.db.QueryRow(t.Context(), sql, args...).Scan(&v); err != nil {
		t.Fatalf("%s: %v", sql, err)
	}
	return v
}

// answer is what the server said.
type answer struct {
	status  int
	header  http.Header
	body    []byte
	receipt Receipt
	problem Problem
}

func (a answer) String() string { return fmt.Sprintf("%d %v %s", a.status, a.header, a.body) }

// call is one request.
type call struct {
	method, path, contentType, key string
	header                         map[string]string
	body                           io.Reader
}

func (w *world) do(t *testing.T, c call) answer {
	t.Helper()
	a, err := w.try(t.Context(), c)
	if err != nil {
		t.Fatal(err)
	}
	return a
}

func (w *world) try(ctx context.Context, c call) (a answer, err error) {
	if c.method == "" {
		c.method = http.MethodPost
	}
	if c.path == "" {
		c.path = path
	}
	if c.contentType == "" {
		c.contentType = jsonType
	}
	if c.key == "" {
		c.key = w.key
	}
	r, err := http.NewRequestWithContext(ctx, c.method, w.url+c.path, c.body)
	if err != nil {
		return a, err
	}
	r.Header.Set("Content-Type", c.contentType)
	r.Header.Set("Authorization", "Bearer "+c.key)
	for name, value := range c.header {
		r.Header.Set(name, value)
	}
	response, err := http.DefaultClient.Do(r)
	if err != nil {
		return a, err
	}
	defer response.Body.Close()
	a.status, a.header = response.StatusCode, response.Header
	if a.body, err = io.ReadAll(response.Body); err != nil {
		return a, err
	}
	switch response.Header.Get("Content-Type") {
	case jsonType:
		err = json.Unmarshal(a.body, &a.receipt)
	case "application/problem+json":
		if err = json.Unmarshal(a.body, &a.problem); err == nil && a.problem.Status != a.status {
			err = errors.New("the status in the problem is another")
		}
	}
	return a, err
}

func (w *world) post(t *testing.T, body string) answer {
	t.Helper()
	return w.do(t, call{body: strings.NewReader(body)})
}

// content returns what the store keeps of a message.
func (w *world) content(t *testing.T, id string) []byte {
	t.Helper()
	queueID, err := mail.ParseQueueID(id)
	if err != nil {
		t.Fatal(err)
	}
	r, err := w.store.OpenContent(t.Context(), queueID)
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	all, err := io.ReadAll(r)
	if err != nil {
		t.Fatal(err)
	}
	return all
}

func (w *world) accepted(t *testing.T, a answer, messages int) []Accepted {
	t.Helper()
	if a.status != http.StatusAccepted || len(a.receipt.Messages) != messages {
		t.Fatalf("got %s, want %d messages", a, messages)
	}
	return a.receipt.Messages
}

// raw sends a whole message.
func (w *world) raw(t *testing.T, query url.Values, content string) answer {
	t.Helper()
	return w.do(t, call{path: path + "?" + query.Encode(), contentType: rawType, body: strings.NewReader(content)})
}

// flow is a body whose length is not announced.
type flow struct{ io.Reader }

func to(addresses ...string) url.Values { return url.Values{"to": addresses} }

func lines(n int) string {
	return strings.Repeat(strings.Repeat("0123456789", 6)+".\xff\r\n", n)
}

var minimal = `{"from": {"address": "a@example.com"}, "to": [{"address": "b@example.org"}], "text": "hello"}`

func TestAccepted(t *testing.T) {
	w := start(t, nil)
	a := w.do(t, call{body: strings.NewReader(`{
		"from": {"address": "ann@example.com", "name": "Ann \u00dc. \"A\""},
		"sender": {"address": "robot@example.com"},
		"reply_to": [{"address": "help@example.com"}],
		"to": [{"address": "bob@B\u00fccher.example", "name": "Bob"}, {"address": "carl@example.org"}],
		"cc": [{"address": "dora@example.org"}, {"address": "CARL@example.org"}, {"address": "carl@EXAMPLE.org"}],
		"bcc": [{"address": "secret@example.net"}],
		"subject": "Gr\u00fc\u00dfe",
		"text": "plain\n.\n", "html": "<img src=\"cid:logo\"> \u00fc",
		"headers": [{"name": "X-Campaign", "value": "spring"}, {"name": "List-Unsubscribe", "value": "<https://example.com/u>"}],
		"attachments": [{"filename": "r\u00e9sum\u00e9.pdf", "content_type": "application/pdf", "content": "UERG"},
			{"content_id": "logo", "content_type": "image/png", "content": "UE5H"}],
		"notify": ["failure", "delay"], "ret": "hdrs", "envid": "e-1", "priority": -2}`),
		header: map[string]string{"Traceparent": "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"}})
	m := w.accepted(t, a, 1)[0]
	if got := strings.Join(m.Recipients, " "); got != "bob@xn--bcher-kva.example carl@example.org dora@example.org CARL@example.org secret@example.net" {
		t.Errorf("recipients %s", got)
	}
	content := w.content(t, m.ID)
	header, body, _ := bytes.Cut(content, []byte("\r\n\r\n"))
	for _, want := range []string{
		"Received: by mx.example with HTTP id " + m.ID + ";\r\n\t",
		"From: =?utf-8?B?QW5uIMOcLiAiQSI=?= <ann@example.com>\r\n", "Sender: robot@example.com\r\n", "Reply-To: help@example.com\r\n",
		"To: Bob <bob@xn--bcher-kva.example>, carl@example.org\r\n", "Cc: dora@example.org, CARL@example.org, carl@EXAMPLE.org\r\n",
		"Message-ID: " + m.MessageID + "\r\n", "Subject: =?utf-8?B?R3LDvMOfZQ==?=\r\n", "X-Campaign: spring\r\n", "MIME-Version: 1.0\r\n", "multipart/mixed",
	} {
		if !bytes.Contains(header, []byte(want)) {
			t.Errorf("no %q in %s", want, header)
		}
	}
	if bytes.Contains(content, []byte("secret")) || !bytes.Contains(body, []byte("Content-ID: <logo>")) || !bytes.Contains(body, []byte("UERG\r\n")) {
		t.Errorf("content %s", content)
	}
	if n := one[int](t, w, `SELECT count(*) FROM messages WHERE queue_id = $1 AND reverse_path = 'robot@example.com' AND tenant = 'acme' AND priority = 2
		AND ret = 'HDRS' AND envid = 'e-1' AND protocol = 'HTTP' AND client_address = '127.0.0.1' AND NOT smtputf8 AND size_bytes = $2
		AND message_id = $3 AND recipient_count = 5`, m.ID, len(content), m.MessageID); n != 1 {
		t.Error("the message row is not as submitted")
	}
	if trace := one[string](t, w, "SELECT traceparent FROM messages"); !strings.HasPrefix(trace, "00-0af7651916cd43dd8448eb211c80319c-") {
		t.Errorf("traceparent %q", trace)
	}
	if notify := one[int16](t, w, "SELECT DISTINCT notify FROM recipients"); notify != int16(mail.NotifyFailure|mail.NotifyDelay) {
		t.Errorf("notify %d", notify)
	}
	id, err := mail.ParseQueueID(m.ID)
	for deadline := time.Now().Add(5 * time.Second); err == nil && !w.bell.has(id); <-time.After(time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatal("nobody rang")
		}
	}
}

func TestRecipientsOfTheirOwn(t *testing.T) {
	w := start(t, nil)
	a := w.post(t, `{"from": {"address": "a@example.com"}, "subject": "For {{ name }}", "text": "Dear {{name}}, {{other}} {{ }} {x}", "html": "<b>{{name}}</b>",
		"headers": [{"name": "X-Id", "value": "{{id}}"}], "substitutions": {"other": "all {{name}}", "id": "0"},
		"recipients": [{"address": "b@example.org", "substitutions": {"name": "Bob & <Co>", "id": "1"}}, {"address": "c@example.org", "name": "C", "substitutions": {"name": "\u00c7elik"}}]}`)
	messages := w.accepted(t, a, 2)
	first, second := string(w.content(t, messages[0].ID)), string(w.content(t, messages[1].ID))
	for _, want := range []string{"\r\n\tfor <b@example.org>;", "To: b@example.org\r\n", "Subject: For Bob & <Co>\r\n", "X-Id: 1\r\n",
		"Dear Bob & <Co>, all {{name}} {{ }} {x}", "<b>Bob &amp; &lt;Co&gt;</b>"} {
		if !strings.Contains(first, want) {
			t.Errorf("no %q in %s", want, first)
		}
	}
	if !strings.Contains(second, "X-Id: 0\r\n") || !strings.Contains(second, "To: C <c@example.org>\r\n") || strings.Contains(second, "Bob") {
		t.Errorf("second: %s", second)
	}
	if n := one[int](t, w, "SELECT count(*) FROM messages"); n != 2 {
		t.Errorf("%d messages", n)
	}
}

func TestHeldAndExpiring(t *testing.T) {
	w := start(t, nil)
	at := time.Now().Add(2 * time.Hour).UTC().Truncate(time.Second)
	a := w.post(t, fmt.Sprintf(`{"from": {"address": "a@example.com"}, "to": [{"address": "b@example.org"}], "reverse_path": "", "text": "x", "send_at": %q, "expires_at": %q}`,
		at.Format(time.RFC3339), at.Add(time.Hour).Format(time.RFC3339)))
	m := w.accepted(t, a, 1)[0]
	if n := one[int](t, w, "SELECT count(*) FROM recipients JOIN messages USING (queue_id) WHERE NOT rung AND next_attempt_at = $1 AND expires_at = $2 AND reverse_path = ''", at, at.Add(time.Hour)); n != 1 {
		t.Error("not held until its time")
	}
	w.accepted(t, w.post(t, minimal), 1) // published after the first
	if id, err := mail.ParseQueueID(m.ID); err != nil || w.bell.has(id) {
		t.Errorf("rung for, %v", err)
	}
}

func TestRaw(t *testing.T) {
	w := start(t, nil)
	header := "From: =?gb2312?B?x6q?= <ann@example.com>\r\nTo: x@example.org\r\nBCC: secret@example.org,\r\n other@example.org\r\nSubject: folded\r\n\there\r\n"
	kept := "From: =?gb2312?B?x6q?= <ann@example.com>\r\nTo: x@example.org\r\nSubject: folded\r\n\there\r\n"
	for _, c := range []struct {
		name string
		body string
		flow bool
	}{
		{"small", "\r\nhello\r\n.\r\n", false}, {"no body", "", false}, {"no last line end", "\r\nhello", false},
		{"8 bit", "\r\n" + lines(100), false}, {"unknown length", "\r\n" + lines(1000), true},
		{"streamed", "\r\n" + lines(40000), false}, {"streamed, unknown length", "\r\n" + lines(40000) + "x", true},
	} {
		t.Run(c.name, func(t *testing.T) {
			var body io.Reader = strings.NewReader(header + c.body)
			if c.flow {
				body = flow{body}
			}
			a := w.do(t, call{path: path + "?to=b@example.org&to=j%C3%BCrgen@example.org&notify=never&priority=1", contentType: rawType, body: body})
			m := w.accepted(t, a, 1)[0]
			content := string(w.content(t, m.ID))
			want := kept + c.body
			if c.body == "" {
				want += "\r\n"
			} else if !strings.HasSuffix(want, "\r\n") {
				want += "\r\n"
			}
			ours, rest, found := strings.Cut(content, "From: ")
			if !found || "From: "+rest != want {
				t.Errorf("%d octets kept, want %d: %.300q", len(rest), len(want), content)
			}
			if !strings.Contains(ours, "\r\nMessage-ID: "+m.MessageID+"\r\n") || !strings.Contains(ours, "\r\nDate: ") {
				t.Errorf("our fields: %s", ours)
			}
			if n := one[int](t, w, "SELECT count(*) FROM messages WHERE queue_id = $1 AND size_bytes = $2 AND smtputf8 AND reverse_path = 'ann@example.com' AND (body_type = '8BITMIME') = $3",
				m.ID, len(content), strings.Contains(c.body, "\xff")); n != 1 {
				t.Error("the message row is not as submitted")
			}
		})
	}
	a := w.raw(t, url.Values{"to": {"b@example.org"}, "reverse_path": {""}}, "Date: Sun, 22 Nov 2026 04:00:00 +0000\r\nMessage-ID: <1@x>\r\nFrom: a@example.com\r\n\r\n")
	m := w.accepted(t, a, 1)[0]
	if content := string(w.content(t, m.ID)); m.MessageID != "<1@x>" || strings.Count(content, "Date:") != 1 || strings.Count(content, "Message-ID:") != 1 {
		t.Errorf("content %q", content)
	}
}

func openSpool(t testing.TB) *spool.Spool {
	t.Helper()
	room, err := spool.Open(spool.Config{Directory: t.TempDir(), Bytes: 256 << 20})
	if err != nil {
		t.Fatal(err)
	}
	return room
}
