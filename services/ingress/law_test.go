package ingress_test

import (
	"bytes"
	"context"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"regexp"
	"strings"
	"testing"

	"github.com/jackc/pgx/v5"

	"github.com/postrider/postrider/pkg/auth"
	"github.com/postrider/postrider/pkg/boot"
	"github.com/postrider/postrider/pkg/mail"
	"github.com/postrider/postrider/pkg/smtp"
	"github.com/postrider/postrider/pkg/store"
	"github.com/postrider/postrider/pkg/storetest"
	"github.com/postrider/postrider/services/ingress"
)

// house is an ingress that clients reach by every door, with one Postgres.
type house struct {
	t        *testing.T
	listener *ingress.Listeners
	store    *store.Store
	sql      *pgx.Conn
	key      string // an API key of the tenant that has acme.example
}

func openHouse(t *testing.T, settings map[string]string) *house {
	t.Helper()
	must := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	for name, value := range map[string]string{
		"HOSTNAME": "mx.example", "SMTP_LISTEN": "127.0.0.1:0", "SUBMISSION_LISTEN": "127.0.0.1:0", "SUBMISSIONS_LISTEN": "", "HTTP_LISTEN": "127.0.0.1:0",
		"SMTP_PLAINTEXT_AUTH": "true", "RELAY_NETWORKS": "127.0.0.0/8",
	} {
		t.Setenv("POSTRIDER_"+name, value)
	}
	for name, value := range settings {
		t.Setenv("POSTRIDER_"+name, value)
	}
	h := &house{t: t}
	address := storetest.New(t)
	var cfg ingress.Config
	must(boot.Load(nil, &cfg))
	var err error
	h.listener, err = ingress.Listen(t.Context(), cfg)
	must(err)
	h.store = serve(t, address, cfg, h.listener).store
	h.sql, err = pgx.Connect(t.Context(), address)
	must(err)
	t.Cleanup(func() { h.sql.Close(context.Background()) })
	hash, err := auth.NewHasher(1).Hash(t.Context(), password)
	must(err)
	var sum [32]byte
	h.key, sum = auth.NewKey()
	must(h.store.CreateTenant(t.Context(), store.Tenant{Name: "acme"}))
	must(h.store.AddDomain(t.Context(), store.TenantDomain{Domain: "acme.example", Tenant: "acme"}))
	must(h.store.CreateCredential(t.Context(), store.Credential{Name: "app", Tenant: "acme", Kind: store.PasswordCredential, Password: hash}))
	must(h.store.CreateCredential(t.Context(), store.Credential{Name: "key", Tenant: "acme", Kind: store.APIKeyCredential, KeySHA256: sum[:]}))
	return h
}

// door is a way in. put returns the queue id of what was accepted, or why it
// was not.
type door struct {
	name  string
	known bool // the client has proved who it is
	put   func(content string) (id, refusal string)
}

func (h *house) doors() []door {
	return []door{
		{"SMTP, relay network", false, func(content string) (string, string) { return h.smtp(content, false, false) }},
		{"SMTP, relay network, chunks", false, func(content string) (string, string) { return h.smtp(content, false, true) }},
		{"SMTP, credential", true, func(content string) (string, string) { return h.smtp(content, true, false) }},
		{"HTTP, whole message", true, h.http},
		{"SQL", true, h.submit},
	}
}

var queueIDs = regexp.MustCompile(`[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}`)

func (h *house) smtp(content string, known, chunks bool) (id, refusal string) {
	h.t.Helper()
	w := &world{address: h.listener.Addr().String()}
	if known {
		w.address = h.listener.SubmissionAddr().String()
	}
	s, err := w.session(h.t.Context())
	if err != nil {
		h.t.Fatal(err)
	}
	defer s.conn.Close()
	say := func(text string, n int) mail.Reply {
		reply, err := s.say(text, n)
		if err != nil {
			h.t.Fatalf("%q: %v", content, err)
		}
		return reply
	}
	if known {
		say("AUTH PLAIN "+base64.StdEncoding.EncodeToString([]byte("\x00app\x00"+password))+"\r\n", 1)
	}
	say("MAIL FROM:<app@acme.example>\r\nRCPT TO:<b@example.org>\r\nRCPT TO:<c@example.org>\r\n", 3)
	var reply mail.Reply
	if chunks {
		half := len(content) / 2
		reply = say(fmt.Sprintf("BDAT %d\r\n%sBDAT %d LAST\r\n%s", half, content[:half], len(content)-half, content[half:]), 2)
	} else {
		say("DATA\r\n", 1)
		var b bytes.Buffer
		d := smtp.NewDotWriter(&b)
		_, _ = d.Write([]byte(content)) // a buffer takes everything
		_ = d.Close()
		reply = say(b.String(), 1)
	}
	if reply.Code != 250 {
		return "", reply.String()
	}
	return queueIDs.FindString(reply.String()), ""
}

func (h *house) http(content string) (id, refusal string) {
	h.t.Helper()
	return h.post("message/rfc822", "?to=b@example.org&to=c@example.org&reverse_path="+url.QueryEscape("app@acme.example"), content)
}

func (h *house) post(kind, query, content string) (id, refusal string) {
	h.t.Helper()
	request, err := http.NewRequestWithContext(h.t.Context(), http.MethodPost, "http://"+h.listener.HTTPAddr().String()+"/v1/messages"+query, strings.NewReader(content))
	if err != nil {
		h.t.Fatal(err)
	}
	request.Header.Set("Content-Type", kind)
	request.Header.Set("Authorization", "Bearer "+h.key)
	response, err := http.DefaultClient.Do(request)
	if err != nil {
		h.t.Fatal(err)
	}
	defer response.Body.Close()
	body, err := io.ReadAll(response.Body)
	if err != nil {
		h.t.Fatal(err)
	}
	if response.StatusCode != http.StatusAccepted {
		var problem struct {
			Errors []struct{ Detail string }
		}
		if err := json.Unmarshal(body, &problem); err != nil || response.StatusCode >= 500 || len(problem.Errors) == 0 {
			h.t.Fatalf("%q: %s %s", content, response.Status, body)
		}
		return "", problem.Errors[0].Detail
	}
	return queueIDs.FindString(string(body)), ""
}

func (h *house) submit(content string) (id, refusal string) {
	h.t.Helper()
	err := h.sql.QueryRow(h.t.Context(), "SELECT postrider.submit('app@acme.example', '{b@example.org,c@example.org}', $1::bytea)::text", []byte(content)).Scan(&id)
	if err != nil {
		return "", err.Error()
	}
	return id, ""
}

var (
	traceField = regexp.MustCompile(`^Received: [^\r\n]+(\r\n\t[^\r\n]+)*\r\n`)
	addedField = regexp.MustCompile(`^(Date: [^\r\n]+\r\n)?(Message-ID: <[^\r\n]+@mx\.example>\r\n)?`)
)

// relayed returns what a host will get, behind the fields that are ours: added
// has those that the message lacked.
func (h *house) relayed(id string) (added, content string) {
	h.t.Helper()
	queueID, err := mail.ParseQueueID(id)
	if err != nil {
		h.t.Fatal(err)
	}
	r, err := h.store.OpenContent(h.t.Context(), queueID)
	if err != nil {
		h.t.Fatal(err)
	}
	defer r.Close()
	all, err := io.ReadAll(r)
	if err != nil {
		h.t.Fatal(err)
	}
	trace := traceField.Find(all)
	if trace == nil {
		h.t.Fatalf("no trace field: %q", all)
	}
	all = all[len(trace):]
	ours := addedField.Find(all)
	return string(ours), string(all[len(ours):])
}

// law is one rule for all doors. What is not relayed as it came is as in
// relayed; of clients that are let in for their address as in network.
var law = []struct {
	name, content    string
	relayed, network string
	refused          string // in the words for clients that have proved who they are
	authors          bool   // it is about what a credential may do, which SQL has none of
}{
	{name: "a message", content: own + "Subject: x\r\n\r\nbody\r\n"},
	{name: "no empty line, no body", content: own, relayed: own + "\r\n"},
	{name: "text where a field should be", content: own + "alarm cleared\r\nNote: x\r\n", relayed: own + "\r\nalarm cleared\r\nNote: x\r\n"},
	{name: "text with a colon", content: own + "node 7: alarm cleared\r\n", relayed: own + "\r\nnode 7: alarm cleared\r\n"},
	{name: "text alone", content: "UPS on battery\r\nRuntime: 20 min\r\n", network: "\r\nUPS on battery\r\nRuntime: 20 min\r\n", refused: "need one From field"},
	{name: "a blank first", content: " X: y\r\n" + own + "\r\nbody\r\n", network: "\r\n X: y\r\n" + own + "\r\nbody\r\n", refused: "need one From field"},
	{name: "a line of blanks first", content: "\t\r\n" + own + "\r\nbody\r\n", network: "\r\n\t\r\n" + own + "\r\nbody\r\n", refused: "need one From field"},
	{name: "an empty line first", content: "\r\n" + own + "\r\nbody\r\n", network: "\r\n" + own + "\r\nbody\r\n", refused: "need one From field"},
	{name: "nothing", content: "", network: "\r\n", refused: "need one From field"},
	{name: "mbox", content: "From root Mon Nov 14 23:42:00 2016\r\n" + own + "\r\nFrom x\r\n", relayed: own + "\r\nFrom x\r\n"},
	{name: "mbox, quoted", content: ">From root@acme.example Mon Nov 14 23:42 UTC 2016\r\nFrom root\r\n" + own + "\r\nbody\r\n", relayed: own + "\r\nbody\r\n"},

	{name: "Bcc", content: "Bcc: d@example.org,\r\n e@example.org\r\n" + own + "RESENT-BCC : f@example.org\r\nX-Bcc: g\r\n\r\nBcc: h\r\n", relayed: own + "X-Bcc: g\r\n\r\nBcc: h\r\n"},
	{name: "our own fields", content: "X-Traceparent: 00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01\r\nX-Postrider-Campaign: spring\r\n" + own + "\r\nbody\r\n", relayed: own + "\r\nbody\r\n"},
	{name: "empty Date and Message-ID", content: "Message-ID: \r\nDate:\r\n" + own + "\r\nbody\r\n", relayed: own + "\r\nbody\r\n", network: "Message-ID: \r\nDate:\r\n" + own + "\r\nbody\r\n"},
	{name: "one Message-ID is empty", content: "Message-ID:\r\nMessage-ID: <1@x>\r\n" + own + "\r\nbody\r\n", relayed: "Message-ID: <1@x>\r\n" + own + "\r\nbody\r\n", network: "Message-ID:\r\nMessage-ID: <1@x>\r\n" + own + "\r\nbody\r\n"},

	{name: "raw UTF-8", content: own + "Subject: Prüfung\r\n\r\nüber\r\n"},
	{name: "raw Latin-1", content: own + "Subject: Pr\xfcfung\r\n\r\n\xfcber\r\n"},
	{name: "raw ISO-2022-JP", content: own + "Subject: \x1b$B8+\x1b(B\r\n\r\nbody\r\n"},

	{name: "100 hops", content: strings.Repeat("Received: by x\r\n", 100) + own + "\r\n", network: "no", refused: "loops"},
	{name: "1001 fields", content: strings.Repeat("X: y\r\n", 1000) + own + "\r\n", network: "no", refused: "header section of more than"},
	{name: "a header section of 257 KiB", content: strings.Repeat("X: "+strings.Repeat("y", 600)+"\r\n", 500) + own + "\r\n", network: "no", refused: "header section of more than"},

	{name: "NUL in a name", content: own + "From\x00: b@example.org\r\n\r\n", network: own + "\r\nFrom\x00: b@example.org\r\n\r\n", refused: "malformed name"},
	{name: "VT in a name", content: own + "From\v: b@example.org\r\n\r\n", network: own + "\r\nFrom\v: b@example.org\r\n\r\n", refused: "malformed name"},
	{name: "NBSP in a name", content: own + "\u00a0From: b@example.org\r\n\r\n", network: own + "\r\n\u00a0From: b@example.org\r\n\r\n", refused: "malformed name"},
	{name: "NBSP of Latin-1 in a name", content: own + "From\xa0: b@example.org\r\n\r\n", network: own + "\r\nFrom\xa0: b@example.org\r\n\r\n", refused: "malformed name"},
	{name: "BOM before a name", content: "\ufeffFrom: b@example.org\r\n" + own + "\r\n", network: "\r\n\ufeffFrom: b@example.org\r\n" + own + "\r\n", refused: "malformed name"},
	{name: "VT in a field", content: own + "Subject: x\vFrom: b@example.org\r\n\r\n", refused: "control character 0x0b"},
	{name: "octet 1 in a field", content: own + "Subject: x\x01From: b@example.org\r\n\r\n", refused: "control character 0x01"},
	{name: "escapes of a terminal", content: own + "Subject: \x1b[2J\r\n\r\n", refused: "control character 0x1b"},

	{name: "no From", content: "Subject: x\r\n\r\n", network: "Subject: x\r\n\r\n", refused: "need one From field, and there is none"},
	{name: "two From", content: own + own + "\r\n", network: own + own + "\r\n", refused: "need one From field, and there are 2"},
	{name: "an empty second From", content: own + "From : \r\n\r\n", network: own + "From : \r\n\r\n", refused: "need one From field, and there are 2"},
	{name: "a careless name", content: "From: Acme, Inc. <app@acme.example>\r\n\r\n"},
	{name: "a name of Latin-1", content: "From: J\xf6rg <app@acme.example>\r\n\r\n"},
	{name: "somebody else's From", content: "From: ceo@example.net, Inc. <app@acme.example>\r\n\r\n", refused: `From names "ceo@example.net"`, authors: true},
	{name: "somebody else's Sender", content: own + "Sender: ceo@example.net\r\n\r\n", refused: `Sender names "ceo@example.net"`, authors: true},
	{name: "somebody else's Resent-From", content: "Resent-From: ceo@example.net\r\n" + own + "\r\n", refused: `Resent-From names "ceo@example.net"`, authors: true},
	{name: "two Sender", content: own + "Sender: app@acme.example\r\nSender:\r\n\r\n", refused: "at most one Sender", network: own + "Sender: app@acme.example\r\nSender:\r\n\r\n"},
}

// mended are messages with a line of more than 998 octets, which SMTP and HTTP
// encode or refuse alike.
var mended = []struct{ name, content, begins, refused string }{
	{"text", own + "Content-Type: text/html charset=utf-8\r\n\r\n<p>" + strings.Repeat("word ", 300) + "\r\n", own + "Content-Type: text/html charset=utf-8\r\nMIME-Version: 1.0\r\nContent-Transfer-Encoding: quoted-printable\r\n\r\n<p>word", ""},
	{"a list of addresses", own + "Cc: " + strings.Repeat("d@example.org,", 100) + "e@example.org\r\n\r\n", own + "Cc:\r\n d@example.org,d@example.org", ""},
	{"a word", own + "Subject: " + strings.Repeat("x", 1500) + "\r\n\r\n", own + "Subject: =?utf-8?B?", ""},
	{"behind an mbox line", "From app Mon Nov 14 23:42:00 2016\r\n" + own + "\r\n" + strings.Repeat("word ", 300) + "\r\n", own + "MIME-Version: 1.0\r\nContent-Type: text/plain; charset=us-ascii\r\n", ""},
	{"signed", "DKIM-Signature: v=1\r\n" + own + "\r\n" + strings.Repeat("word ", 300) + "\r\n", "", "signed content"},
	{"for programs", own + "Content-ID: <" + strings.Repeat("x", 1500) + "@x>\r\n\r\n", "", "too long"},
}

func TestLongLines(t *testing.T) {
	h := openHouse(t, nil)
	for _, c := range mended {
		for _, door := range h.doors() {
			t.Run(c.name+"/"+door.name, func(t *testing.T) {
				h.t = t
				id, refusal := door.put(c.content)
				if c.refused != "" || door.name == "SQL" {
					if id != "" || !strings.Contains(refusal, c.refused) && door.name != "SQL" {
						t.Fatalf("accepted %q, refused %q, want %q", id, refusal, c.refused)
					}
					return
				}
				if id == "" {
					t.Fatal(refusal)
				}
				_, got := h.relayed(id)
				if !strings.HasPrefix(got, c.begins) {
					t.Errorf("relayed as %.300q, want %q", got, c.begins)
				}
				for line := range strings.SplitSeq(got, "\r\n") {
					if len(line) > 998 {
						t.Errorf("a line of %d octets", len(line))
					}
				}
			})
		}
	}
	h.t = t
	// What is too large to be held in memory is refused, wherever the line is.
	small := strings.Repeat(strings.Repeat("x", 70)+"\r\n", 20000)
	for content, want := range map[string]string{
		own + "\r\n" + strings.Repeat("x", 999) + "\r\n" + small: "line 3: more than 998 octets",
		own + "\r\n" + small + strings.Repeat("x", 999) + "\r\n": "line 20003: more than 998 octets",
	} {
		if id, refusal := h.http(content); id != "" || !strings.Contains(refusal, want) {
			t.Errorf("accepted %q, refused %q, want %q", id, refusal, want)
		}
	}
}

const own = "From: Acme <app@acme.example>\r\n"

// TestLaw: a message has the same fate whichever way it comes in.
func TestLaw(t *testing.T) {
	h := openHouse(t, nil)
	for _, rule := range law {
		for _, door := range h.doors() {
			t.Run(rule.name+"/"+door.name, func(t *testing.T) {
				h.t = t
				want, refused := rule.relayed, rule.refused
				if !door.known {
					refused = ""
					if want = rule.network; want == "" {
						want = rule.relayed
					} else if want == "no" {
						refused = rule.refused
					}
				}
				if door.name == "SQL" && rule.authors {
					refused = ""
				}
				if want == "" {
					want = rule.content
				}
				id, refusal := door.put(rule.content)
				if refused != "" {
					if id != "" || !strings.Contains(refusal, refused) && !strings.Contains(refusal, "NUL") {
						t.Fatalf("accepted %q, refused %q; want %q", id, refusal, refused)
					}
					return
				}
				if id == "" {
					t.Fatal(refusal)
				}
				added, got := h.relayed(id)
				if got != want {
					t.Errorf("relayed as %q, want %q", got, want)
				}
				lacks := func(name string) bool { return !strings.Contains("\r\n"+want, "\r\n"+name) }
				if strings.Contains(added, "Date: ") != (door.known && lacks("Date: ")) || strings.Contains(added, "Message-ID: ") != (door.known && lacks("Message-ID: ")) {
					t.Errorf("added %q", added)
				}
				var utf8, eightBit bool
				err := h.sql.QueryRow(t.Context(), "SELECT smtputf8, body_type = '8BITMIME' FROM postrider.messages WHERE queue_id = $1", id).Scan(&utf8, &eightBit)
				if err != nil || utf8 || strings.HasPrefix(door.name, "SMTP") && eightBit {
					t.Errorf("SMTPUTF8 %t, 8BITMIME %t, %v, though the client said nothing of it", utf8, eightBit, err)
				}
			})
		}
	}
}
