package mtasts

import (
	"context"
	"crypto/tls"
	"errors"
	"net"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"
	"unicode"

	"github.com/postrider/postrider/pkg/smtptest"
	"github.com/postrider/postrider/pkg/store"
	"github.com/postrider/postrider/pkg/storetest"
)

func TestParseRecord(t *testing.T) {
	for name, c := range map[string]struct {
		texts []string
		want  string
	}{
		"RFC 8461 §3.1":              {[]string{"v=STSv1; id=20160831085700Z;"}, "20160831085700Z"},
		"no final semicolon":         {[]string{"v=STSv1; id=1"}, "1"},
		"other records do not count": {[]string{"google-site-verification=x", "v=STSv1;id=a1;", "v=spf1 -all"}, "a1"},
		"extensions":                 {[]string{"v=STSv1; id=1; foo=bar baz; x.y-z_1=2"}, "1"},
		"the first id counts":        {[]string{"v=STSv1; id=1; id=2"}, "1"},
		"two records":                {[]string{"v=STSv1; id=1;", "v=STSv1; id=2;"}, ""},
		"no id":                      {[]string{"v=STSv1;"}, ""},
		"version in lower case":      {[]string{"v=stsv1; id=1;"}, ""},
		"version is not the first":   {[]string{"id=1; v=STSv1;"}, ""},
		"other version":              {[]string{"v=STSv10; id=1;"}, ""},
		"id of 33":                   {[]string{"v=STSv1; id=" + strings.Repeat("1", 33)}, ""},
		"id of 32":                   {[]string{"v=STSv1; id=" + strings.Repeat("1", 32)}, strings.Repeat("1", 32)},
		"id with a hyphen":           {[]string{"v=STSv1; id=2020-01-01"}, ""},
		"a field without value":      {[]string{"v=STSv1; id=1; what"}, ""},
		"none":                       {nil, ""},
	} {
		id, ok := ParseRecord(c.texts)
		if id != c.want || ok != (c.want != "") {
			t.Errorf("%s: got %q %v, want %q", name, id, ok, c.want)
		}
	}
}

const good = "version: STSv1\r\nmode: enforce\r\nmx: mail.example.com\r\nmx: *.example.net\r\nmx: backupmx.example.com\r\nmax_age: 604800\r\n"

func TestParse(t *testing.T) {
	p, err := Parse(good)
	if err != nil || p.Mode != ModeEnforce || p.MaxAge != 7*24*time.Hour || !slices.Equal(p.MX, []string{"mail.example.com", "*.example.net", "backupmx.example.com"}) || len(p.Text) != 6 {
		t.Fatalf("%+v, %v", p, err)
	}
	for name, text := range map[string]string{
		"LF alone": strings.ReplaceAll(good, "\r\n", "\n"), "no last line end": strings.TrimSuffix(good, "\r\n"),
		"unknown fields": good + "future-1: anything: at all\r\n", "a second mode": good + "mode: none\r\n",
		"capitals in names": strings.Replace(good, "mail.example.com", "Mail.Example.COM.", 1), "spaces": strings.ReplaceAll(good, ": ", ":   "),
	} {
		if got, err := Parse(text); err != nil || got.Mode != ModeEnforce || got.MX[0] != "mail.example.com" {
			t.Errorf("%s: %+v, %v", name, got, err)
		}
	}
	for name, text := range map[string]string{
		"empty": "", "no version": strings.Replace(good, "version: STSv1\r\n", "", 1), "version 2": strings.Replace(good, "STSv1", "STSv2", 1),
		"mode unknown": strings.Replace(good, "enforce", "maybe", 1), "no max_age": strings.Replace(good, "max_age: 604800\r\n", "", 1),
		"negative max_age": strings.Replace(good, "604800", "-1", 1), "max_age with sign": strings.Replace(good, "604800", "+1", 1),
		"max_age of 11 digits": strings.Replace(good, "604800", "60480060480", 1), "no mx": "version: STSv1\nmode: enforce\nmax_age: 1\n",
		"mx is a pattern of another kind": strings.Replace(good, "*.example.net", "*mail.example.net", 1), "mx is all": strings.Replace(good, "*.example.net", "*", 1),
		"mx of two wildcards": strings.Replace(good, "*.example.net", "*.*.net", 1), "a line without colon": good + "what\r\n",
		"HTML": "<html><body>not found</body></html>", "not UTF-8": good + "x: \xff\n", "too many": good + strings.Repeat("mx: a.example\n", 101),
		"too long": good + "x: " + strings.Repeat("a", maxPolicy),
	} {
		if p, err := Parse(text); err == nil {
			t.Errorf("%s: taken as %+v", name, p)
		}
	}
	if p, err := Parse("version: STSv1\nmode: none\nmax_age: 9999999999\n"); err != nil || p.Mode != ModeNone || p.MaxAge != maxMaxAge*time.Second {
		t.Errorf("mode none: %+v, %v", p, err)
	}
}

func TestMatches(t *testing.T) {
	p := Policy{MX: []string{"mail.example.com", "*.example.net"}}
	for host, want := range map[string]bool{
		"mail.example.com": true, "MAIL.example.com.": true, "mx.mail.example.com": false, "example.com": false,
		"a.example.net": true, "a.b.example.net": false, "example.net": false, "aexample.net": false, "": false,
	} {
		if p.Matches(host) != want {
			t.Errorf("%q: got %v", host, !want)
		}
	}
}

func FuzzParse(f *testing.F) {
	f.Add(good)
	f.Add("version: STSv1\nmode: none\nmax_age: 0\n")
	f.Fuzz(func(t *testing.T, text string) {
		p, err := Parse(text)
		if err != nil {
			return
		}
		if p.MaxAge < 0 || p.MaxAge > maxMaxAge*time.Second || len(p.MX) > maxPatterns || p.Mode != ModeNone && len(p.MX) == 0 {
			t.Errorf("%+v", p)
		}
		if again, err := Parse(strings.Join(p.Text, "\r\n")); err != nil || again.Mode != p.Mode || !slices.Equal(again.MX, p.MX) || again.MaxAge != p.MaxAge {
			t.Errorf("its lines read again: %+v, %v", again, err)
		}
		if strings.ContainsFunc(strings.Join(p.Text, ""), func(r rune) bool { return r != '\t' && unicode.IsControl(r) }) {
			t.Errorf("lines that Postgres and reports cannot have: %q", p.Text)
		}
		if p.Matches("") || p.Matches("net") != slices.Contains(p.MX, "net") {
			t.Errorf("%q matches what it must not", p.MX)
		}
	})
}

func FuzzParseRecord(f *testing.F) {
	f.Add("v=STSv1; id=1;", "")
	f.Fuzz(func(t *testing.T, a, b string) {
		if id, ok := ParseRecord([]string{a, b}); ok && (len(id) > 32 || !onlyBytes(id, alphanumeric)) {
			t.Errorf("id %q", id)
		}
	})
}

// policyHost is a policy host that all domains share.
type policyHost struct {
	*httptest.Server
	answer atomic.Value // http.HandlerFunc
	asked  atomic.Int64
}

func serve(text string) http.HandlerFunc {
	return func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Type", "text/plain; charset=utf-8")
		_, _ = w.Write([]byte(text))
	}
}

func newPolicyHost(t *testing.T, config *tls.Config) *policyHost {
	h := &policyHost{}
	h.answer.Store(serve(good))
	h.Server = httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		h.asked.Add(1)
		if r.URL.Path != "/.well-known/mta-sts.txt" || !strings.HasPrefix(r.Host, "mta-sts.") {
			http.Redirect(w, r, "https://mta-sts.example.com/.well-known/mta-sts.txt", http.StatusFound)
			return
		}
		h.answer.Load().(http.HandlerFunc)(w, r)
	}))
	h.TLS = config
	h.StartTLS()
	t.Cleanup(h.Close)
	return h
}

func (h *policyHost) dial(ctx context.Context, _, _ string) (net.Conn, error) {
	var d net.Dialer
	return d.DialContext(ctx, "tcp", h.Listener.Addr().String())
}

func TestFetch(t *testing.T) {
	ca, err := smtptest.NewAuthority()
	if err != nil {
		t.Fatal(err)
	}
	config, err := ca.Server("mta-sts.example.com")
	if err != nil {
		t.Fatal(err)
	}
	h := newPolicyHost(t, config)
	f := newFetcher(FetchConfig{Dial: h.dial, Roots: ca.Pool(), Timeout: 2 * time.Second})
	status := func(code int) http.HandlerFunc {
		return func(w http.ResponseWriter, _ *http.Request) {
			w.Header().Set("Location", "https://mta-sts.example.com/other")
			w.Header().Set("Content-Type", "text/plain")
			w.WriteHeader(code)
			_, _ = w.Write([]byte(good))
		}
	}
	for name, c := range map[string]struct {
		answer http.HandlerFunc
		domain string
		want   string
	}{
		"good":       {serve(good), "example.com", ""},
		"301":        {status(301), "example.com", "sts-policy-fetch-error"},
		"302":        {status(302), "example.com", "sts-policy-fetch-error"},
		"404":        {status(404), "example.com", "sts-policy-fetch-error"},
		"201":        {status(201), "example.com", "sts-policy-fetch-error"},
		"500":        {status(500), "example.com", "sts-policy-fetch-error"},
		"wrong name": {serve(good), "example.net", "sts-webpki-invalid"},
		"no policy":  {serve("hello"), "example.com", "sts-policy-invalid"},
		"endless":    {serve(good + strings.Repeat("x: y\r\n", maxPolicy)), "example.com", "sts-policy-invalid"},
		"HTML": {func(w http.ResponseWriter, _ *http.Request) {
			w.Header().Set("Content-Type", "text/html")
			_, _ = w.Write([]byte(good))
		}, "example.com", "sts-policy-invalid"},
		"stalled": {func(_ http.ResponseWriter, r *http.Request) { <-r.Context().Done() }, "example.com", "sts-policy-fetch-error"},
		"cut short": {func(w http.ResponseWriter, _ *http.Request) {
			w.Header().Set("Content-Type", "text/plain")
			w.Header().Set("Content-Length", "999")
			_, _ = w.Write([]byte(good))
		}, "example.com", "sts-policy-fetch-error"},
	} {
		h.answer.Store(c.answer)
		_, err := f.fetch(t.Context(), c.domain)
		got := ""
		if err != nil {
			got = faultOf(err)
		}
		if got != c.want {
			t.Errorf("%s: got %q (%v), want %q", name, got, err, c.want)
		}
	}
	stranger, err := smtptest.NewAuthority()
	if err != nil {
		t.Fatal(err)
	}
	h.answer.Store(serve(good))
	untrusting := newFetcher(FetchConfig{Dial: h.dial, Roots: stranger.Pool(), Timeout: 2 * time.Second})
	if _, err := untrusting.fetch(t.Context(), "example.com"); err == nil || faultOf(err) != "sts-webpki-invalid" {
		t.Errorf("a certificate that nobody vouches for: %v", err)
	}
}

// TestPolicyIsKept walks a policy through its life: fetched, kept, kept on
// while its host or its record is away, replaced with its id, refreshed.
func TestPolicyIsKept(t *testing.T) {
	ca, err := smtptest.NewAuthority()
	if err != nil {
		t.Fatal(err)
	}
	config, err := ca.Server("mta-sts.example.com", "mta-sts.short.test", "mta-sts.new.test")
	if err != nil {
		t.Fatal(err)
	}
	h := newPolicyHost(t, config)
	db, err := store.Open(t.Context(), store.Config{URL: storetest.New(t), MaxConns: 2})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(db.Close)
	f := New(db, FetchConfig{Dial: h.dial, Roots: ca.Pool(), Timeout: 5 * time.Second})
	check := func(what, domain, id string, mode Mode, fault string, asked int64) {
		t.Helper()
		got, err := f.Policy(t.Context(), domain, id)
		if err != nil || got.Policy.Mode != mode || got.Fault != fault {
			t.Errorf("%s: got %+v, %v; want mode %q, fault %q", what, got, err, mode, fault)
		}
		if n := h.asked.Load(); n != asked {
			t.Errorf("%s: the policy host was asked %d times, want %d", what, n, asked)
		}
	}
	broken := func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(http.StatusServiceUnavailable) }
	check("no record", "example.com", "", "", "", 0)
	check("first", "example.com", "1", ModeEnforce, "", 1)
	check("kept", "example.com", "1", ModeEnforce, "", 1)
	check("record gone or DNS down", "example.com", "", ModeEnforce, "", 1)
	h.answer.Store(http.HandlerFunc(broken))
	check("new id, host down", "example.com", "2", ModeEnforce, "sts-policy-fetch-error", 2)
	check("not asked again at once", "example.com", "2", ModeEnforce, "sts-policy-fetch-error", 2)
	check("never seen, host down", "new.test", "1", "", "sts-policy-fetch-error", 3)
	h.answer.Store(serve(strings.Replace(good, "enforce", "testing", 1)))
	f.failed = map[string]failure{} // five minutes later
	check("new id", "example.com", "2", ModeTesting, "", 4)
	h.answer.Store(serve("version: STSv1\nmode: none\nmax_age: 86400\n"))
	check("mode none", "example.com", "3", ModeNone, "", 5)
	h.answer.Store(serve(strings.Replace(good, "604800", "0", 1)))
	check("max_age 0", "short.test", "1", ModeEnforce, "", 6)
	check("and gone", "short.test", "", "", "", 6)
	if err := f.refreshOnce(t.Context()); err != nil || h.asked.Load() != 6 {
		t.Errorf("nothing is stale yet: %v, asked %d times", err, h.asked.Load())
	}
	other := New(db, FetchConfig{Dial: h.dial, Roots: ca.Pool(), Timeout: 5 * time.Second})
	if got, err := other.Policy(t.Context(), "example.com", "3"); err != nil || got.Policy.Mode != ModeNone || h.asked.Load() != 6 {
		t.Errorf("another resolver: %+v, %v", got, err)
	}
}

// stale is a keeper with one policy that is to be fetched again.
type stale struct {
	mu    sync.Mutex
	saved []store.STSPolicy
}

func (s *stale) STSPolicy(context.Context, string) (store.STSPolicy, error) {
	return store.STSPolicy{}, errors.New("not asked for")
}

func (s *stale) SaveSTSPolicy(_ context.Context, p store.STSPolicy) (time.Time, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.saved = append(s.saved, p)
	return time.Now().Add(p.MaxAge), nil
}

func (s *stale) StaleSTSPolicies(context.Context, int) ([]store.STSPolicy, error) {
	return []store.STSPolicy{{Domain: "down.test", ID: "9"}, {Domain: "example.com", ID: "7"}}, nil
}

func TestRefresh(t *testing.T) {
	ca, err := smtptest.NewAuthority()
	if err != nil {
		t.Fatal(err)
	}
	config, err := ca.Server("mta-sts.example.com")
	if err != nil {
		t.Fatal(err)
	}
	h := newPolicyHost(t, config)
	s := &stale{}
	f := &Finder{keeper: s, fetcher: newFetcher(FetchConfig{Dial: h.dial, Roots: ca.Pool(), Timeout: 5 * time.Second}), failed: map[string]failure{}}
	if err := f.refreshOnce(t.Context()); err != nil {
		t.Fatal(err)
	}
	if len(s.saved) != 1 || s.saved[0].Domain != "example.com" || s.saved[0].ID != "7" || s.saved[0].Mode != "enforce" {
		t.Errorf("saved %+v, want the one policy that could be fetched, under its id", s.saved)
	}
}
