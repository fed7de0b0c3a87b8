package httpd

import (
	"bufio"
	"bytes"
	"encoding/base64"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/postrider/postrider/pkg/mail"
	"github.com/postrider/postrider/services/ingress/internal/spool"
)

func TestRefused(t *testing.T) {
	w := start(t, nil)
	with := func(member string) string {
		return `{"from": {"address": "a@example.com"}, "to": [{"address": "b@example.org"}], ` + member + `}`
	}
	each := func(member string) string {
		return `{"from": {"address": "a@example.com"}, "recipients": [{"address": "b@example.org", "substitutions": {"n": "x\r\nBcc: y@example.org"}}], ` + member + `}`
	}
	for _, c := range []struct {
		name, body string
		status     int
		pointers   []string
	}{
		{"not JSON", `{"from"`, 400, []string{"#"}},
		{"not an object", `[]`, 400, []string{"#"}},
		{"no from", `{"to": [{"address": "b@example.org"}]}`, 400, []string{"#"}},
		{"unknown member", with(`"bodyy": "x"`), 400, []string{"#/bodyy"}},
		{"other case", with(`"Subject": "x"`), 400, []string{"#/Subject"}},
		{"wrong type", with(`"subject": 1`), 400, []string{"#/subject"}},
		{"not UTF-8", with("\"subject\": \"\xff\""), 400, []string{"#"}},
		{"no recipients", `{"from": {"address": "a@example.com"}}`, 400, []string{"#/to"}},
		{"two bad addresses", `{"from": {"address": "a@example.com"}, "to": [{"address": "b@example.org"}, {"address": "b c@x.y"}], "cc": [{"address": "b@-x"}]}`, 400, []string{"#/to/1/address", "#/cc/0/address"}},
		{"injection by address", `{"from": {"address": "a@example.com>\r\nX: y"}, "to": [{"address": "b@example.org"}]}`, 400, []string{"#/from/address"}},
		{"injection by name", `{"from": {"address": "a@example.com", "name": "x\r\nBcc: y@z"}, "to": [{"address": "b@example.org"}]}`, 400, []string{"#/from/name"}},
		{"injection by subject", with(`"subject": "x\nBcc: y@z"`), 400, []string{"#/subject"}},
		{"NUL in the subject", with(`"subject": "x\u0000"`), 400, []string{"#/subject"}},
		{"CR in a field", with(`"headers": [{"name": "X-A", "value": "a"}, {"name": "X-B", "value": "b\rX: y"}]`), 400, []string{"#/headers/1/value"}},
		{"field name", with(`"headers": [{"name": "X A", "value": "a"}]`), 400, []string{"#/headers/0/name"}},
		{"field of ours", with(`"headers": [{"name": "BCC", "value": "a"}]`), 400, []string{"#/headers/0/name"}},
		{"Content-Type", with(`"headers": [{"name": "Content-Type", "value": "a"}]`), 400, []string{"#/headers/0/name"}},
		{"long word", with(`"headers": [{"name": "References", "value": "<` + strings.Repeat("a", 901) + `@x>"}]`), 400, []string{"#/headers/0/value"}},
		{"no ASCII for programs", with(`"headers": [{"name": "List-Unsubscribe", "value": "<https://example.com/ü>"}]`), 400, []string{"#/headers/0/value"}},
		{"no addresses", with(`"headers": [{"name": "Errors-To", "value": "Jörg"}]`), 400, []string{"#/headers/0/value"}},
		{"an international address in a field", with(`"headers": [{"name": "Errors-To", "value": "Jörg <jörg@example.com>"}]`), 400, []string{"#/headers/0/value"}},
		{"Message-ID", with(`"headers": [{"name": "Message-ID", "value": "a"}]`), 400, []string{"#/headers/0/value"}},
		{"NUL in the text", with(`"text": "x\u0000"`), 400, []string{"#/text"}},
		{"NUL in the html", with(`"html": "x\u0000"`), 400, []string{"#/html"}},
		{"base64", with(`"attachments": [{"content": "%%"}]`), 400, []string{"#/attachments/0/content"}},
		{"media type", with(`"attachments": [{"content": "", "content_type": "x"}]`), 400, []string{"#/attachments/0/content_type"}},
		{"attached message", with(`"attachments": [{"content": "", "content_type": "message/rfc822"}]`), 400, []string{"#/attachments/0/content_type"}},
		{"file name", with(`"attachments": [{"content": "", "filename": "a\r\nb"}]`), 400, []string{"#/attachments/0/filename"}},
		{"content id", with(`"attachments": [{"content": "", "content_id": "a>\r\nb"}]`), 400, []string{"#/attachments/0/content_id"}},
		{"substitution injects", each(`"subject": "{{n}}"`), 400, []string{"#/recipients/0/substitutions"}},
		{"no value", each(`"text": "{{missing}}"`), 400, []string{"#/recipients/0/substitutions"}},
		{"substitutions for to", with(`"substitutions": {"a": "b"}`), 400, []string{"#/substitutions"}},
		{"to and recipients", with(`"recipients": [{"address": "b@example.org"}]`), 400, []string{"#/recipients"}},
		{"never and failure", with(`"notify": ["never", "failure"]`), 400, []string{"#/notify"}},
		{"notify", with(`"notify": ["sometimes"]`), 400, []string{"#/notify/0"}},
		{"priority", with(`"priority": 10`), 400, []string{"#/priority"}},
		{"envid", with(`"envid": "a\nb"`), 400, []string{"#/envid"}},
		{"send_at", with(`"send_at": "2126-01-01T00:00:00Z"`), 400, []string{"#/send_at"}},
		{"expired", with(`"expires_at": "2020-01-01T00:00:00Z"`), 400, []string{"#/expires_at"}},
		{"foreign from", `{"from": {"address": "a@example.net"}, "to": [{"address": "b@example.org"}], "reverse_path": "a@example.com"}`, 403, []string{"#/from/address"}},
		{"zero width space", `{"from": {"address": "a@example.com"}, "to": [{"address": "ann\u200b@example.org"}]}`, 400, []string{"#/to/0/address"}},
		{"no-break space", `{"from": {"address": "a@example.com"}, "to": [{"address": "ann\u00a0@example.org"}]}`, 400, []string{"#/to/0/address"}},
		{"foreign address in the name", `{"from": {"address": "a@example.com", "name": "CEO <ceo@example.net>"}, "to": [{"address": "b@example.org"}]}`, 403, []string{"#/from/name"}},
		{"foreign address in the sender's name", with(`"sender": {"address": "a@example.com", "name": "<ceo@example.net>"}`), 403, []string{"#/sender/name"}},
		{"foreign sender", with(`"reverse_path": "a@example.com", "sender": {"address": "ceo@example.net"}`), 403, []string{"#/sender/address"}},
		{"foreign reverse-path", with(`"reverse_path": "a@example.net"`), 403, []string{"#/reverse_path"}},
		{"too many recipients", `{"from": {"address": "a@example.com"}, "to": [` + strings.TrimSuffix(strings.Repeat(`{"address": "b@example.org"},`, 1001), ",") + `]}`, 400, []string{"#/to"}},
	} {
		t.Run(c.name, func(t *testing.T) {
			a := w.post(t, c.body)
			var pointers []string
			for _, f := range a.problem.Errors {
				pointers = append(pointers, f.Pointer)
			}
			if a.status != c.status || !slices.Equal(pointers, c.pointers) || a.header.Get("Content-Type") != "application/problem+json" {
				t.Errorf("got %s, want %d %v", a, c.status, c.pointers)
			}
		})
	}
	if n := one[int](t, w, "SELECT count(*) FROM messages"); n != 0 {
		t.Errorf("%d messages after refusals", n)
	}
}

func TestRefusedRaw(t *testing.T) {
	w := start(t, nil)
	const ok = "From: a@example.com\r\n\r\n"
	for _, c := range []struct {
		name    string
		query   url.Values
		content string
		status  int
		want    string // in the body
	}{
		{"bare LF", to("b@example.org"), ok + "a\nb\r\n", 400, "line 3: bare"},
		{"bare CR", to("b@example.org"), ok + "a\rb\r\n", 400, "line 3: bare"},
		{"bare CR at the end", to("b@example.org"), ok + "a\r", 400, "line 3: bare"},
		{"bare LF, late", to("b@example.org"), ok + lines(40000) + "\n", 400, "line 40003: bare"},
		{"NUL", to("b@example.org"), ok + "\x00", 400, "NUL"},
		{"long line", to("b@example.org"), ok + strings.Repeat("a", 999), 400, "998"},
		{"no From", to("b@example.org"), "Subject: x\r\n\r\n", 400, "From"},
		{"empty", to("b@example.org"), "", 400, "From"},
		{"two From", to("b@example.org"), "From: a@example.com\r\n" + ok, 400, "need one From field"},
		{"no header", to("b@example.org"), "hello\r\n\r\n", 400, "need one From field"},
		{"long header", to("b@example.org"), strings.Repeat("X: y\r\n", 50000) + ok, 400, "header section"},
		{"one long field", to("b@example.org"), "X: y\r\n" + strings.Repeat(" y\r\n", 300000) + ok, 400, "header section"},
		{"loop", to("b@example.org"), strings.Repeat("Received: by x\r\n", 100) + ok, 400, "loops"},
		{"foreign From", to("b@example.org"), "From: a@example.com, b@example.net\r\n\r\n", 403, "credential"},
		{"foreign reverse-path", url.Values{"to": {"b@example.org"}, "reverse_path": {"x@example.net"}}, ok, 403, "credential"},
		{"too large", to("b@example.org"), ok + lines(140000), 413, "bytes"},
		{"no recipient", nil, ok, 400, `"to"`},
		{"bad recipient", to("b@example.org", "b"), ok, 400, "without a domain"},
		{"soft hyphen", to("ann\u00ad@example.org"), ok, 400, "U+00AD"},
		{"injection", to("b@example.org>\r\nRCPT TO:<c@example.org"), ok, 400, "malformed"},
		{"unknown parameter", url.Values{"to": {"b@example.org"}, "too": {"x"}}, ok, 400, `"too"`},
		{"time", url.Values{"to": {"b@example.org"}, "send_at": {"tomorrow"}}, ok, 400, "3339"},
	} {
		t.Run(c.name, func(t *testing.T) {
			a := w.raw(t, c.query, c.content)
			if a.status != c.status || !bytes.Contains(a.body, []byte(c.want)) {
				t.Errorf("got %s, want %d %q", a, c.status, c.want)
			}
		})
	}
	if a := w.do(t, call{path: path + "?to=b@example.org", contentType: rawType, body: flow{strings.NewReader(ok + lines(140000))}}); a.status != 413 {
		t.Errorf("too large, without a length: %s", a)
	}
	if n := one[int](t, w, "SELECT (SELECT count(*) FROM messages) + (SELECT count(*) FROM contents)"); n != 0 {
		t.Errorf("%d rows after refusals", n)
	}
}

func TestProtocol(t *testing.T) {
	w := start(t, nil)
	body := func() io.Reader { return strings.NewReader(minimal) }
	for _, c := range []struct {
		name   string
		call   call
		status int
		header string // name: value
	}{
		{"GET", call{method: "GET"}, 405, "Allow: POST"},
		{"elsewhere", call{path: "/v2", body: body()}, 404, ""},
		{"form", call{contentType: "application/x-www-form-urlencoded", body: body()}, 415, ""},
		{"plain text", call{contentType: "text/plain", body: body()}, 415, ""},
		{"charset", call{contentType: "application/json; charset=latin1", body: body()}, 415, ""},
		{"UTF-8", call{contentType: "application/json; charset=UTF-8", body: body()}, 202, ""},
		{"gzip", call{header: map[string]string{"Content-Encoding": "gzip"}, body: body()}, 415, ""},
		{"no key", call{header: map[string]string{"Authorization": ""}, body: body()}, 401, "Www-Authenticate: Bearer realm=\"postrider\""},
		{"Basic", call{header: map[string]string{"Authorization": "Basic eDp5"}, body: body()}, 401, ""},
		{"wrong key", call{key: "pr_" + strings.Repeat("A", 43), body: body()}, 401, ""},
		{"large", call{body: strings.NewReader(strings.Repeat(" ", 1<<20) + minimal)}, 413, ""},
		{"large, without a length", call{body: flow{strings.NewReader(strings.Repeat(" ", 1<<20) + minimal)}}, 413, ""},
		{"idempotency key", call{header: map[string]string{"Idempotency-Key": "a b"}, body: body()}, 400, ""},
		{"document", call{method: "GET", path: "/openapi.json"}, 200, "Content-Type: application/openapi+json"},
		{"document, POST", call{path: "/openapi.json"}, 405, "Allow: GET, HEAD"},
	} {
		t.Run(c.name, func(t *testing.T) {
			a := w.do(t, c.call)
			name, value, _ := strings.Cut(c.header, ": ")
			if a.status != c.status || a.header.Get(name) != value {
				t.Errorf("got %s, want %d %s", a, c.status, c.header)
			}
		})
	}
}

func TestIdempotency(t *testing.T) {
	w := start(t, nil)
	send := func(key, body, apiKey string) answer {
		return w.do(t, call{body: strings.NewReader(body), key: apiKey, header: map[string]string{"Idempotency-Key": key}})
	}
	first := send("order-1", minimal, w.key)
	w.accepted(t, first, 1)
	again := send(`"order-1"`, minimal, w.key)
	if again.status != 202 || !bytes.Equal(again.body, first.body) || again.header.Get("Idempotent-Replayed") != "true" || first.header.Get("Idempotent-Replayed") != "" {
		t.Errorf("got %s, then %s", first, again)
	}
	if a := send("order-1", strings.Replace(minimal, "hello", "hallo", 1), w.key); a.status != 422 {
		t.Errorf("with another body: %s", a)
	}
	w.accepted(t, send("order-1", minimal, w.other), 1) // another tenant
	whole := "From: a@example.com\r\n\r\n" + lines(20000)
	large := func(query string) answer {
		return w.do(t, call{path: path + query, contentType: rawType, body: strings.NewReader(whole), header: map[string]string{"Idempotency-Key": "large"}})
	}
	one1 := large("?to=b@example.org")
	if two := large("?to=b@example.org"); one1.status != 202 || two.status != 202 || !bytes.Equal(one1.body, two.body) {
		t.Errorf("streamed: %s, then %s", one1, two)
	}
	if a := large("?to=c@example.org"); a.status != 422 {
		t.Errorf("with another envelope: %s", a)
	}
	if n := one[int](t, w, "SELECT count(*) FROM messages"); n != 3 {
		t.Errorf("%d messages, want 3", n)
	}

	// Many at once: one is accepted, the others hear the same or are to wait.
	var mu sync.Mutex
	bodies := map[string]int{}
	var wg sync.WaitGroup
	for range 12 {
		wg.Go(func() {
			for range 100 {
				a, err := w.try(t.Context(), call{body: strings.NewReader(`{"from": {"address": "a@example.com"}, "text": "{{n}}", "substitutions": {"n": "1"}, "recipients": [{"address": "b@example.org"}, {"address": "c@example.org"}]}`),
					header: map[string]string{"Idempotency-Key": "together"}})
				if err == nil && a.status == 409 {
					continue
				}
				if err != nil || a.status != 202 {
					t.Errorf("%s, %v", a, err)
				}
				mu.Lock()
				bodies[string(a.body)]++
				mu.Unlock()
				return
			}
			t.Error("409 without an end")
		})
	}
	wg.Wait()
	if n := one[int](t, w, "SELECT count(*) FROM messages"); n != 5 || len(bodies) != 1 {
		t.Errorf("%d messages, %d different answers, want 5 and 1", n, len(bodies))
	}
}

// A request that is repeated counts once against a quota.
func TestRepeatedRequestCountsOnce(t *testing.T) {
	w := start(t, nil)
	send := func(recipients, key string) answer {
		return w.do(t, call{key: w.narrow, header: map[string]string{"Idempotency-Key": key},
			body: strings.NewReader(`{"from": {"address": "any@example.com"}, "reverse_path": "news@example.com", "text": "x", "to": [` + recipients + `]}`)})
	}
	for n := range 3 { // of 3 recipients a day
		if a := send(`{"address": "b@example.org"}`, "again"); a.status != 202 {
			t.Fatalf("time %d: %s", n+1, a)
		}
	}
	if a := send(`{"address": "b@example.org"}, {"address": "c@example.org"}`, "others"); a.status != 202 {
		t.Errorf("the second and third recipient of the day: %s", a)
	}
	if a := send(`{"address": "b@example.org"}`, "too-many"); a.status != 429 {
		t.Errorf("over the quota: %s", a)
	}
}

func TestQuotaAndBackPressure(t *testing.T) {
	w := start(t, func(c *Config) { c.MemoryBytes = 4 << 20 })
	news := func(recipients string) answer {
		return w.do(t, call{key: w.narrow, body: strings.NewReader(`{"from": {"address": "any@example.com"}, "reverse_path": "news@example.com", "text": "x", "to": [` + recipients + `]}`)})
	}
	if a := news(`{"address": "b@example.org"}, {"address": "c@example.org"}`); a.status != 202 {
		t.Fatal(a)
	}
	if a := news(`{"address": "b@example.org"}, {"address": "c@example.org"}`); a.status != 429 || a.header.Get("Retry-After") == "" {
		t.Errorf("over the quota: %s", a)
	}
	// What no day has room for does not wait for the next one.
	four := `{"address": "b@example.org"}, {"address": "c@example.org"}, {"address": "d@example.org"}, {"address": "e@example.org"}`
	if a := news(four); a.status != 403 || a.header.Get("Retry-After") != "" || !strings.Contains(a.problem.Detail, "4 recipients") {
		t.Errorf("more than a day's quota: %s", a)
	}
	each := w.do(t, call{key: w.narrow, body: strings.NewReader(`{"from": {"address": "any@example.com"}, "reverse_path": "news@example.com", "text": "x", "recipients": [` + four + `]}`)})
	if each.status != 403 || each.header.Get("Retry-After") != "" {
		t.Errorf("more than a day's quota, in messages of their own: %s", each)
	}
	if a := news(`{"address": "b@example.org"}`); a.status != 202 {
		t.Errorf("what was refused counted: %s", a)
	}
	// While a slow request holds the budget, other large ones are told to come
	// back; small ones pass. What was only announced holds nothing.
	large := minimal[:1] + strings.Repeat(" ", 600<<10) + minimal[1:]
	begin := func(text string) (*io.PipeWriter, <-chan answer) {
		t.Helper()
		pipe, slow := io.Pipe()
		done := make(chan answer)
		go func() {
			a, err := w.try(t.Context(), call{body: pipe})
			if err != nil {
				t.Error(err)
			}
			done <- a
		}()
		if _, err := slow.Write([]byte(text)); err != nil {
			t.Fatal(err)
		}
		return slow, done
	}
	end := func(slow *io.PipeWriter, done <-chan answer, text string) {
		t.Helper()
		if _, err := slow.Write([]byte(text)); err != nil {
			t.Fatal(err)
		}
		slow.Close()
		w.accepted(t, <-done, 1)
	}
	idle, idleDone := begin(minimal[:10])
	slow, slowDone := begin(large[:590<<10])
	for deadline := time.Now().Add(5 * time.Second); w.server.budget.Used() < 3<<20; <-time.After(time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatal("the slow request holds nothing")
		}
	}
	if a := w.post(t, large); a.status != 429 || a.header.Get("Retry-After") != "1" {
		t.Errorf("over the budget: %s", a)
	}
	w.accepted(t, w.post(t, minimal), 1)
	end(slow, slowDone, large[590<<10:])
	w.accepted(t, w.post(t, large), 1)
	end(idle, idleDone, minimal[10:])
}

// However many clients send large messages slowly, others do not wait for
// them, in memory or for a turn.
func TestSlowLargeMessages(t *testing.T) {
	w := start(t, func(c *Config) { c.MemoryBytes = 4 << 20 })
	text := "From: a@example.com\r\n\r\n" + strings.Repeat(strings.Repeat("x", 70)+"\r\n", 2<<20/72)
	raw := func(body io.Reader) (answer, error) {
		return w.try(t.Context(), call{path: path + "?to=b@example.org", contentType: rawType, body: body})
	}
	const slow = 10
	answers := make(chan answer, slow)
	var pipes [slow]*io.PipeWriter
	for i := range pipes {
		var body *io.PipeReader
		body, pipes[i] = io.Pipe()
		go func() {
			a, err := raw(body)
			if err != nil {
				t.Error(err)
			}
			answers <- a
		}()
	}
	for _, pipe := range pipes {
		if _, err := io.WriteString(pipe, text[:len(text)-5000]); err != nil {
			t.Fatal(err)
		}
	}
	a, err := raw(strings.NewReader(text))
	if err != nil {
		t.Fatal(err)
	}
	w.accepted(t, a, 1)
	if used := w.server.budget.Used(); used > slow*spool.Small {
		t.Errorf("%d bytes of memory are held for slow clients", used)
	}
	for _, pipe := range pipes {
		if _, err := io.WriteString(pipe, text[len(text)-5000:]); err != nil {
			t.Fatal(err)
		}
		pipe.Close()
		w.accepted(t, <-answers, 1)
	}
}

func TestTooSlow(t *testing.T) {
	w := start(t, func(c *Config) { c.ReadTimeout = 200 * time.Millisecond })
	var d net.Dialer
	conn, err := d.DialContext(t.Context(), "tcp", strings.TrimPrefix(w.url, "http://"))
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	fmt.Fprintf(conn, "POST %s HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer %s\r\nContent-Type: application/json\r\nContent-Length: 100\r\n\r\n{", path, w.key)
	response, err := http.ReadResponse(bufio.NewReader(conn), nil)
	if err != nil {
		t.Fatal(err)
	}
	response.Body.Close()
	if response.StatusCode != http.StatusRequestTimeout {
		t.Errorf("got %s", response.Status)
	}
}

// Messages that are too large for one transaction are refused as a whole.
func TestTooMuchTogether(t *testing.T) {
	w := start(t, nil)
	file := base64.StdEncoding.EncodeToString(bytes.Repeat([]byte("x"), 300<<10))
	recipients := strings.TrimSuffix(strings.Repeat(`{"address": "b@example.org"},`, 30), ",")
	a := w.post(t, `{"from": {"address": "a@example.com"}, "recipients": [`+recipients+`], "attachments": [{"content": "`+file+`"}]}`)
	if a.status != 413 || one[int](t, w, "SELECT count(*) FROM messages") != 0 {
		t.Errorf("got %s", a)
	}
}

// A JSON message over 1 MiB is streamed to Postgres.
func TestLargeJSON(t *testing.T) {
	w := start(t, func(c *Config) { c.MaxBodyBytes = 4 << 20 })
	data := bytes.Repeat([]byte("0123456789abcdef"), 100<<10)
	a := w.post(t, `{"from": {"address": "a@example.com"}, "to": [{"address": "b@example.org"}], "attachments": [{"content": "`+base64.StdEncoding.EncodeToString(data)+`"}]}`)
	content := w.content(t, w.accepted(t, a, 1)[0].ID)
	_, encoded, _ := bytes.Cut(content, []byte("octet-stream\r\n"))
	_, encoded, _ = bytes.Cut(encoded, []byte("\r\n\r\n"))
	encoded, _, _ = bytes.Cut(encoded, []byte("\r\n\r\n--"))
	decoded, err := base64.StdEncoding.DecodeString(string(encoded))
	if err != nil || !bytes.Equal(decoded, data) {
		t.Errorf("%d octets, %v, want %d", len(decoded), err, len(data))
	}
}

func TestCurl(t *testing.T) {
	w := start(t, nil)
	run := func(args ...string) string {
		t.Helper()
		out, err := exec.CommandContext(t.Context(), "curl", append([]string{"-sS", "-w", " %{http_code}", "-H", "Authorization: Bearer " + w.key}, args...)...).CombinedOutput()
		if err != nil {
			t.Fatalf("curl: %v: %s", err, out)
		}
		return string(out)
	}
	if out := run("--json", minimal, w.url+path); !strings.Contains(out, `"recipients":["b@example.org"]`) || !strings.HasSuffix(out, " 202") {
		t.Errorf("curl --json: %s", out)
	}
	file := filepath.Join(t.TempDir(), "message.eml")
	write(t, file, "From: a@example.com\r\nSubject: by curl\r\n\r\n"+lines(30000))
	out := run("-H", "Content-Type: message/rfc822", "--data-binary", "@"+file, w.url+path+"?to=b%40example.org")
	if !strings.HasSuffix(out, " 202") {
		t.Errorf("curl --data-binary: %s", out)
	}
	if n := one[int](t, w, "SELECT count(*) FROM messages"); n != 2 {
		t.Errorf("%d messages, want 2", n)
	}
}

// What Postgres refuses gets no 202.
func TestNotStored(t *testing.T) {
	w := start(t, nil)
	w.accepted(t, w.post(t, minimal), 1)
	w.exec(t, fmt.Sprintf("ALTER TABLE messages_%s RENAME TO gone", time.Now().UTC().Format("20060102")))
	if a := w.post(t, minimal); a.status != 503 || a.header.Get("Retry-After") == "" {
		t.Errorf("got %s", a)
	}
}

func FuzzAddress(f *testing.F) {
	for _, s := range []string{"a@b", `"a b"@[192.0.2.1]`, "j\u00fcrgen@b\u00fccher.example", "@a:b@c", "a@b>", "a@b\r\n"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, text string) {
		a, err := parseAddress(text)
		if err != nil {
			return
		}
		if strings.ContainsAny(a.text, "\r\n\x00<>") && !strings.HasPrefix(a.text, `"`) || strings.ContainsAny(a.text, "\r\n\x00") {
			t.Errorf("%q became %q", text, a.text)
		}
		again, err := parseAddress(a.text)
		if err != nil || again != a {
			t.Errorf("%q became %q, and then %q, %v", text, a.text, again.text, err)
		}
		if !a.utf8 && !isASCII(a.text) {
			t.Errorf("%q is not ASCII and needs no SMTPUTF8", a.text)
		}
		if _, err := mail.ParseDomain(string(a.domain)); err != nil {
			t.Error(err)
		}
	})
}
