package store_test

import (
	"bytes"
	"context"
	"errors"
	"io"
	"net/mail"
	"regexp"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"

	words "github.com/postrider/postrider/pkg/mail"
	"github.com/postrider/postrider/pkg/store"
	"github.com/postrider/postrider/pkg/storetest"
)

const content = "From: Ann <ann@example.com>\nTo: bob@example.org\nBcc: secret@example.org,\n other@example.org\nSubject: hello\n\nIt works.\n.\nGr\u00fc\u00dfe\n"

func (f *fixture) submit(t *testing.T, sql string, args ...any) words.QueueID {
	t.Helper()
	return one[words.QueueID](t, f, "SELECT submit("+sql+")", args...)
}

func (f *fixture) content(t *testing.T, id words.QueueID) []byte {
	t.Helper()
	r, err := f.OpenContent(t.Context(), id)
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

func TestSubmit(t *testing.T) {
	f := setup(t)
	before := time.Now().Add(-time.Second)
	id := f.submit(t, `'ann@example.com', '{bob@Example.ORG,"\"a b\"@example.net",bob@example.org,x@[192.0.2.1]}', $1::text,
		tenant => 'acme', campaign => 'spring', priority => 3::smallint, notify => 'success,failure', ret => 'hdrs', envid => 'e 1',
		traceparent => '00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01'`, content)
	if _, err := words.ParseQueueID(id.String()); err != nil || id.Time().Before(before) || id.Time().After(time.Now().Add(time.Second)) {
		t.Errorf("id %s of %s, %v", id, id.Time(), err)
	}
	got := f.content(t, id)
	if bytes.Contains(bytes.ReplaceAll(got, []byte("\r\n"), nil), []byte("\n")) {
		t.Errorf("a bare LF: %q", got)
	}
	m, err := mail.ReadMessage(bytes.NewReader(got))
	if err != nil {
		t.Fatal(err)
	}
	body, err := io.ReadAll(m.Body)
	if err != nil || string(body) != "It works.\r\n.\r\nGr\u00fc\u00dfe\r\n" {
		t.Errorf("body %q, %v", body, err)
	}
	date, err := m.Header.Date()
	if err != nil || time.Since(date) > time.Minute {
		t.Errorf("Date %s, %v", date, err)
	}
	if m.Header.Get("Bcc") != "" || m.Header.Get("Subject") != "hello" || m.Header.Get("To") != "bob@example.org" {
		t.Errorf("header %v", m.Header)
	}
	if messageID := "<" + id.String() + "@localhost>"; m.Header.Get("Message-ID") != messageID ||
		one[string](t, f, "SELECT message_id FROM messages") != messageID {
		t.Errorf("Message-ID %q", m.Header.Get("Message-ID"))
	}
	if !bytes.HasPrefix(got, []byte("Received: by localhost (postrider) with SQL id "+id.String()+";\r\n\t")) {
		t.Errorf("trace field: %.200q", got)
	}
	if n := one[int](t, f, `SELECT count(*) FROM messages WHERE size_bytes = $1 AND tenant = 'acme' AND priority = 3 AND recipient_count = 3
		AND body_type = '8BITMIME' AND NOT smtputf8 AND ret = 'HDRS' AND envid = 'e 1' AND protocol = 'SQL' AND campaign = 'spring' AND NOT tls_optional`, len(got)); n != 1 {
		t.Error("the message row is not as submitted")
	}
	if r := one[string](t, f, "SELECT string_agg(recipient_no || ' ' || forward_path || ' ' || domain || ' ' || notify, ', ' ORDER BY recipient_no) FROM recipients"); r !=
		`1 bob@Example.ORG example.org 6, 2 "a b"@example.net example.net 6, 3 x@[192.0.2.1] [192.0.2.1] 6` {
		t.Errorf("recipients: %s", r)
	}
	// Due at once, for the scheduler.
	ring, _, err := f.Ring(t.Context(), store.RingOptions{Limit: 10})
	if err != nil || len(ring) != 1 || len(ring[0].Recipients) != 3 || ring[0].Message.ID != id {
		t.Fatalf("rung: %v, %v", ring, err)
	}
	if a, err := f.Accounting(t.Context()); err != nil || a.Accepted != 3 || a.Unaccounted != 0 {
		t.Errorf("%+v, %v", a, err)
	}
}

// RFC 8689 §3.
func TestSubmitWithoutTLS(t *testing.T) {
	f := setup(t)
	for content, want := range map[string]bool{
		"From: a@example.com\nTLS-Required: No\n\nx\n":            true,
		"tls-required:\n no \nFrom: a@example.com\n\nx\n":         true,
		"From: a@example.com\nTLS-Required: Nobody\n\nx\n":        false,
		"From: a@example.com\nX-TLS-Required: No\n\nx\n":          false,
		"From: a@example.com\nSubject: x\n\nTLS-Required: No\n\n": false,
	} {
		id := f.submit(t, `'a@example.com', '{b@example.org}', $1::text`, content)
		if got := one[bool](t, f, "SELECT tls_optional FROM messages WHERE queue_id = $1", id); got != want {
			t.Errorf("%q: %v, want %v", content, got, want)
		}
	}
}

// What the message has is not changed, and bytea passes octet for octet.
func TestSubmitBytes(t *testing.T) {
	f := setup(t)
	f.exec(t, "UPDATE submit_settings SET hostname = 'mx.example'")
	header := "Date: Mon, 2 Nov 2026 10:00:00 +0000\r\nmessage-id : <1@example.com>\r\nFrom: a@example.com\r\nSubject: long\r\n\tfolded\r\n"
	body := "\r\n\x80\xff" + strings.Repeat(strings.Repeat("0123456789", 99)+"\r\n", 1500)
	id := f.submit(t, `'', '{bob@example.org}', $1::bytea`, []byte(header+body))
	_, rest, ok := strings.Cut(string(f.content(t, id)), "+0000\r\n")
	if !ok || rest != header+body {
		t.Errorf("%d octets, want %d; begins %.300q", len(rest), len(header+body), rest)
	}
	if n := one[int](t, f, "SELECT count(*) FROM contents WHERE length(content) = 262144"); n != 5 {
		t.Errorf("%d whole chunks, want 5", n)
	}
	if got := one[string](t, f, "SELECT message_id FROM messages"); got != "<1@example.com>" {
		t.Errorf("Message-ID %q", got)
	}
	// A header section without a body gets its empty line.
	id = f.submit(t, `'', '{bob@example.org}', $1::bytea`, []byte("From: a@example.com"))
	if all := f.content(t, id); !bytes.HasSuffix(all, []byte("From: a@example.com\r\n\r\n")) {
		t.Errorf("%q", all)
	}
	// An address outside ASCII needs SMTPUTF8 on its way.
	f.submit(t, `'', ARRAY['jürgen@example.org'], $1::bytea`, []byte("From: a@example.com\r\n\r\n"))
	if n := one[int](t, f, "SELECT count(*) FROM messages WHERE smtputf8"); n != 1 {
		t.Errorf("%d messages need SMTPUTF8, want 1", n)
	}
	f.submit(t, `'', '{a@example.org}', $1::bytea, send_at => now() + interval '1 hour', lifetime => '2 hours'`, []byte("From: a@example.com\r\n\r\n"))
	if n := one[int](t, f, `SELECT count(*) FROM recipients WHERE NOT rung AND next_attempt_at > now() + interval '59 minutes'
		AND expires_at = next_attempt_at + interval '2 hours'`); n != 1 {
		t.Errorf("%d are held, want 1", n)
	}
}

func TestSubmitRefuses(t *testing.T) {
	f := setup(t)
	const ok = "From: a@example.com\r\n\r\n"
	long := strings.Repeat("a", 243)
	for _, c := range []struct{ name, reverse, recipient, content, options, want string }{
		{"bare LF", "a@example.com", "b@example.org", "From: a@example.com\n\n", "", "bare CR or LF"},
		{"bare CR", "a@example.com", "b@example.org", "From: a@example.com\r\n\r\na\rb\r\n", "", "bare CR or LF"},
		{"CR CR LF", "a@example.com", "b@example.org", "From: a@example.com\r\r\n\n", "", "bare CR or LF"},
		{"NUL", "a@example.com", "b@example.org", ok + "\x00", "", "NUL"},
		{"long line", "a@example.com", "b@example.org", ok + strings.Repeat("a", 999) + "\r\n", "", "998"},
		{"no From", "a@example.com", "b@example.org", "Subject: x\r\n\r\n", "", "From"},
		{"no header", "a@example.com", "b@example.org", "Hello you\r\n\r\n", "", "need one From field"},
		{"empty", "a@example.com", "b@example.org", "", "", "From"},
		{"no domain", "a@example.com", "b", ok, "", "no domain"},
		{"empty recipient", "a@example.com", "", ok, "", "no domain"},
		{"line break in a recipient", "a@example.com", "b@example.org>\r\nRCPT TO:<c@example.org", ok, "", "malformed"},
		{"line break in a local-part", "a@example.com", "\"b\r\nc\"@example.org", ok, "", "malformed"},
		{"space", "a@example.com", "b c@example.org", ok, "", "malformed"},
		{"only dots", "a@example.com", "..@example.org", ok, "", "malformed"},
		{"hyphen", "a@example.com", "b@-example.org", ok, "", "malformed"},
		{"empty label", "a@example.com", "b@example..org", ok, "", "malformed"},
		{"U-label", "a@example.com", "b@b\u00fccher.example", ok, "", "A-labels"},
		{"literal", "a@example.com", "b@[192.0.2.256]", ok, "", "literal"},
		{"C1 control", "a@example.com", "b\u0085@example.org", ok, "", "U+0085"},
		{"zero width space", "a@example.com", "ann\u200b@example.org", ok, "", "U+200B"},
		{"no-break space", "a@example.com", "ann\u00a0@example.org", ok, "", "U+00A0"},
		{"override", "ann\u202e@example.com", "b@example.org", ok, "", "U+202E"},
		{"long path", "a@example.com", long + "@example.org", ok, "", "254"},
		{"long path in quotes", "a@example.com", "." + long[3:] + "@example.org", ok, "", "254"},
		{"reverse-path", "a@example.com>", "b@example.org", ok, "", "malformed"},
		{"envid", "a@example.com", "b@example.org", ok, ", envid => E'a\\nb'", "envid"},
		{"notify", "a@example.com", "b@example.org", ok, ", notify => 'NEVER,DELAY'", "notify"},
		{"notify word", "a@example.com", "b@example.org", ok, ", notify => 'SOMETIMES'", "notify"},
		{"ret", "a@example.com", "b@example.org", ok, ", ret => 'x'", "ret"},
		{"traceparent", "a@example.com", "b@example.org", ok, ", traceparent => 'x'", "traceparent"},
		{"lifetime", "a@example.com", "b@example.org", ok, ", lifetime => '-1 s'", "lifetime"},
		{"key", "a@example.com", "b@example.org", ok, ", idempotency_key => 'a b'", "idempotency_key"},
		{"null", "a@example.com", "b@example.org", ok, ", tenant => NULL", "null"},
	} {
		t.Run(c.name, func(t *testing.T) {
			_, err := f.db.Exec(t.Context(), `SELECT submit($1, ARRAY[$2], $3::bytea`+c.options+`)`, c.reverse, c.recipient, []byte(c.content))
			var pg *pgconn.PgError
			if !errors.As(err, &pg) || pg.Code != "22023" && pg.Code != "22004" || !strings.Contains(pg.Message, c.want) {
				t.Errorf("got %v, want %q", err, c.want)
			}
		})
	}
	f.exec(t, "UPDATE submit_settings SET max_message_bytes = 65536")
	if _, err := f.db.Exec(t.Context(), `SELECT submit('', '{a@example.org}', $1::bytea)`, []byte(ok+strings.Repeat("a\r\n", 22000))); err == nil {
		t.Error("content over the limit was taken")
	}
	if _, err := f.db.Exec(t.Context(), `SELECT submit('', '{}', $1::bytea)`, []byte(ok)); err == nil {
		t.Error("no recipients, and it was taken")
	}
	if n := one[int](t, f, "SELECT count(*) FROM messages"); n != 0 {
		t.Errorf("%d messages after refusals", n)
	}
}

// Addresses that are in use and that RFC 5321 does not foresee are taken, and
// stand in the envelope as it wants them.
func TestSubmitTakesWhatIsInUse(t *testing.T) {
	f := setup(t)
	long := "reply+" + strings.Repeat("0123456789", 9)
	for _, c := range []struct{ address, want string }{
		{long + "@example.org", long + "@example.org"},
		{"b..c@Example.org", `"b..c"@Example.org`},
		{".b@example.org", `".b"@example.org`},
		{"b.@example.org", `"b."@example.org`},
		{`"b.."@example.org`, `"b.."@example.org`},
		{"b.c@example.org", "b.c@example.org"},
	} {
		f.submit(t, `$2, ARRAY[$2, $3], $1::bytea`, []byte("From: a@example.com\r\n\r\n"), c.address, c.want)
		if n := one[int](t, f, `SELECT count(*) FROM recipients JOIN messages USING (queue_id) WHERE forward_path = '`+c.want+`' AND reverse_path = forward_path
			AND recipient_count = 1`); n != 1 {
			t.Errorf("%s: %d messages from and to %s, want 1", c.address, n, c.want)
		}
		f.exec(t, "DELETE FROM recipients; DELETE FROM messages")
	}
}

// The mail leaves if and only if the application's transaction commits.
func TestSubmitIsTransactional(t *testing.T) {
	f := setup(t)
	f.exec(t, "CREATE TABLE orders (id integer PRIMARY KEY)")
	order := func(end string) {
		f.exec(t, "BEGIN; INSERT INTO orders VALUES (1)")
		f.exec(t, `SELECT submit('a@example.com', '{b@example.org}', $1::text)`, content)
		if ring, _, err := f.Ring(t.Context(), store.RingOptions{Limit: 10}); err != nil || len(ring) != 0 {
			t.Errorf("before the commit %d messages are rung for, %v", len(ring), err)
		}
		f.exec(t, end)
	}
	order("ROLLBACK")
	if n := one[int](t, f, "SELECT (SELECT count(*) FROM messages) + (SELECT count(*) FROM recipients) + (SELECT count(*) FROM contents)"); n != 0 {
		t.Errorf("%d rows after a rollback", n)
	}
	order("COMMIT")
	if ring, _, err := f.Ring(t.Context(), store.RingOptions{Limit: 10}); err != nil || len(ring) != 1 {
		t.Errorf("after the commit %d messages are rung for, %v", len(ring), err)
	}
}

func TestSubmitIdempotency(t *testing.T) {
	f := setup(t)
	call := `'a@example.com', '{b@example.org}', $1::text, idempotency_key => $2`
	first := f.submit(t, call, content, "order-7")
	if again := f.submit(t, call, content, "order-7"); again != first {
		t.Errorf("the repeat made %s, want %s", again, first)
	}
	if _, err := f.db.Exec(t.Context(), "SELECT submit("+call+")", content+"more\n", "order-7"); err == nil || !strings.Contains(err.Error(), "another message") {
		t.Errorf("got %v, want a refusal", err)
	}
	f.exec(t, "UPDATE idempotency SET accepted_at = now() - interval '25 hours'")
	if later := f.submit(t, call, content, "order-7"); later == first {
		t.Error("after a day the key is not free")
	}
	if n := one[int](t, f, "SELECT count(*) FROM messages"); n != 2 {
		t.Errorf("%d messages, want 2", n)
	}
}

// Many connections at once: every id is its own, ids of one connection grow,
// and of those with one key one is made.
func TestSubmitAtOnce(t *testing.T) {
	url := storetest.New(t)
	const clients, each = 6, 20
	ids := make([][]words.QueueID, clients)
	keys := make([]words.QueueID, clients)
	var wg sync.WaitGroup
	for i := range clients {
		wg.Go(func() {
			db, err := pgx.Connect(t.Context(), url)
			if err != nil {
				t.Error(err)
				return
			}
			defer db.Close(context.Background())
			for range each {
				var id words.QueueID
				if err := db.QueryRow(t.Context(), `SELECT postrider.submit('', '{b@example.org}', $1::text)`, content).Scan(&id); err != nil {
					t.Error(err)
					return
				}
				ids[i] = append(ids[i], id)
			}
			if err := db.QueryRow(t.Context(), `SELECT postrider.submit('', '{b@example.org}', $1::text, idempotency_key => 'k')`, content).Scan(&keys[i]); err != nil {
				t.Error(err)
			}
		})
	}
	wg.Wait()
	seen := map[words.QueueID]bool{}
	for i := range ids {
		for n, id := range ids[i] {
			if seen[id] {
				t.Errorf("%s twice", id)
			}
			seen[id] = true
			if n > 0 && id.Time().Before(ids[i][n-1].Time()) {
				t.Errorf("%s after %s", id, ids[i][n-1])
			}
		}
		if keys[i] != keys[0] {
			t.Errorf("%s and %s under one key", keys[i], keys[0])
		}
	}
	if len(seen) != clients*each {
		t.Errorf("%d ids, want %d", len(seen), clients*each)
	}
}

// An application needs the role postrider_submit, and nothing else.
func TestSubmitRole(t *testing.T) {
	f := setup(t)
	f.exec(t, "SET ROLE postrider_submit")
	defer f.exec(t, "RESET ROLE")
	id := f.submit(t, `'a@example.com', '{b@example.org}', $1::text, idempotency_key => 'k'`, content)
	if !regexp.MustCompile(`^[0-9a-f]{8}-[0-9a-f]{4}-7[0-9a-f]{3}-[89ab][0-9a-f]{3}-[0-9a-f]{12}$`).MatchString(id.String()) {
		t.Errorf("%s is no UUIDv7", id)
	}
	for _, q := range []string{"SELECT count(*) FROM messages", "SELECT count(*) FROM idempotency", "SELECT retire_idempotency(1)", "INSERT INTO routing (domain, hosts) VALUES ('x', '{y}')"} {
		if _, err := f.db.Exec(t.Context(), q); err == nil || !strings.Contains(err.Error(), "permission denied") {
			t.Errorf("%s: %v, want it denied", q, err)
		}
	}
	f.exec(t, "SET ROLE postrider_reader")
	if _, err := f.db.Exec(t.Context(), `SELECT submit('', '{b@example.org}', 'x'::text)`); err == nil || !strings.Contains(err.Error(), "permission denied") {
		t.Errorf("%v, want it denied", err)
	}
}

// Each message by SQL is handed out once, to whoever asks first.
func TestTakeSubmitted(t *testing.T) {
	f := setup(t)
	id := f.submit(t, `'ann@example.com', '{b@example.org,c@example.org}', $1::text, tenant => 'acme'`, content)
	f.submit(t, `'', '{b@example.org}', $1::text`, content)
	first, err := f.TakeSubmitted(t.Context(), 1)
	if err != nil || len(first) != 1 {
		t.Fatalf("%v, %v", first, err)
	}
	rest, err := f.TakeSubmitted(t.Context(), 10)
	if err != nil || len(rest) != 1 {
		t.Fatalf("%v, %v", rest, err)
	}
	if again, err := f.TakeSubmitted(t.Context(), 10); err != nil || len(again) != 0 {
		t.Errorf("again %v, %v", again, err)
	}
	subs := append(first, rest...)
	slices.SortFunc(subs, func(a, b *words.Submission) int { return bytes.Compare(a.ID[:], b.ID[:]) })
	if s := subs[0]; s.ID != id || s.Envelope.ReversePath != "ann@example.com" || len(s.Recipients) != 2 || s.SizeBytes == 0 || s.Tenant != "acme" ||
		s.HeaderID == "" || s.Client.Protocol != "SQL" || s.AcceptedAt.IsZero() {
		t.Errorf("%+v", s)
	}
	subs[0].Traceparent = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
	if err := f.SetTraceparents(t.Context(), subs); err != nil {
		t.Fatal(err)
	}
	if got := one[string](t, f, "SELECT traceparent FROM messages WHERE queue_id = $1", id); got != subs[0].Traceparent {
		t.Errorf("traceparent %q", got)
	}
}

// Mail by SQL has the name that ingress has, until an operator says another.
func TestAnnounceHostname(t *testing.T) {
	f := setup(t)
	received := func(want string) {
		t.Helper()
		id := f.submit(t, `'a@example.com', '{b@example.org}', $1::text`, content)
		if got := f.content(t, id); !bytes.HasPrefix(got, []byte("Received: by "+want+" ")) || !bytes.Contains(got, []byte("@"+want+">\r\n")) {
			t.Errorf("%.300q, want %s", got, want)
		}
	}
	received("localhost")
	for _, name := range []string{"mx.example", "mx2.example"} {
		if err := f.AnnounceHostname(t.Context(), name); err != nil {
			t.Fatal(err)
		}
		received(name)
	}
	f.exec(t, "UPDATE submit_settings SET hostname = 'mine.example'")
	received("mine.example")
	if err := f.AnnounceHostname(t.Context(), "x y"); err == nil {
		t.Error("took a name that is none")
	}
}

// Whatever octet is in a header field, it begins no other field.
func TestSubmitOctets(t *testing.T) {
	f := setup(t)
	for c := 1; c < 256; c++ {
		octet := string([]byte{byte(c)})
		var id words.QueueID
		err := f.db.QueryRow(t.Context(), `SELECT submit('a@example.com', '{b@example.org}', $1::bytea)`,
			[]byte("From: a@example.com\r\nSubject: hello "+octet+"Reply-To: thief@evil.example"+octet+"Content-Type: text/html\r\n\r\n<b>body</b>\r\n")).Scan(&id)
		if refused := c < ' ' && c != '\t' || c == 0x7f; refused != (err != nil) {
			t.Errorf("octet %#02x: %v", c, err)
		}
		if err != nil {
			continue
		}
		got := f.content(t, id)
		if !bytes.Contains(got, []byte("\r\nSubject: hello "+octet+"Reply-To: thief")) {
			t.Errorf("octet %#02x: %q", c, got)
		}
	}
}
