package ingress_test

import (
	"bufio"
	"context"
	"crypto/tls"
	"encoding/base64"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/xdg-go/scram"

	"github.com/postrider/postrider/pkg/auth"
	"github.com/postrider/postrider/pkg/boot"
	"github.com/postrider/postrider/pkg/smtp"
	"github.com/postrider/postrider/pkg/store"
	"github.com/postrider/postrider/pkg/storetest"
	"github.com/postrider/postrider/services/ingress"
)

const password = "correct horse"

// doors are ingress processes with one Postgres, which clients reach through
// a load balancer: each has the address that it says.
type doors struct {
	t    *testing.T
	all  []*ingress.Listeners
	keys map[string]string // API keys by name
}

func openDoors(t *testing.T, processes, maxFailures int) *doors {
	t.Helper()
	for name, value := range map[string]string{
		"HOSTNAME": "mx.example", "SMTP_LISTEN": "", "SUBMISSION_LISTEN": "", "SUBMISSIONS_LISTEN": "127.0.0.1:0", "HTTP_LISTEN": "127.0.0.1:0",
		"TLS_SELF_SIGNED": "true", "PROXY_NETWORKS": "127.0.0.0/8", "HTTP_PROXY_NETWORKS": "127.0.0.0/8", "AUTH_MAX_FAILURES": fmt.Sprint(maxFailures),
	} {
		t.Setenv("POSTRIDER_"+name, value)
	}
	d := &doors{t: t, keys: map[string]string{}}
	url := storetest.New(t)
	db, err := store.Open(t.Context(), store.Config{URL: url, MaxConns: 2})
	d.must(err)
	defer db.Close()
	hash, err := auth.NewHasher(1).Hash(t.Context(), password)
	d.must(err)
	keys, err := auth.NewSCRAMKeys(password)
	d.must(err)
	d.must(db.CreateTenant(t.Context(), store.Tenant{Name: "acme"}))
	elsewhere := []netip.Prefix{netip.MustParsePrefix("203.0.113.0/24")}
	for _, c := range []store.Credential{
		{Name: "app"}, {Name: "disabled", Disabled: true}, {Name: "expired", ExpiresAt: time.Now().Add(-time.Second)}, {Name: "elsewhere", Networks: elsewhere},
	} {
		c.Tenant, c.ReversePaths = "acme", []string{"example.com"}
		key, sum := auth.NewKey()
		ofKey := c
		ofKey.Name, ofKey.Kind, ofKey.KeySHA256 = c.Name+"-http", store.APIKeyCredential, sum[:]
		c.Kind, c.Password, c.SCRAM = store.PasswordCredential, hash, store.SCRAMKeys(keys)
		d.must(db.CreateCredential(t.Context(), c))
		d.must(db.CreateCredential(t.Context(), ofKey))
		d.keys[c.Name] = key
	}
	for range processes {
		var cfg ingress.Config
		d.must(boot.Load(nil, &cfg))
		listener, err := ingress.Listen(t.Context(), cfg)
		d.must(err)
		serve(t, url, cfg, listener)
		d.all = append(d.all, listener)
	}
	return d
}

func (d *doors) must(err error) {
	d.t.Helper()
	if err != nil {
		d.t.Fatal(err)
	}
}

// dial reaches a process as a client with an address.
func dial(ctx context.Context, to net.Addr, client string) (net.Conn, error) {
	var dialer net.Dialer
	conn, err := dialer.DialContext(ctx, "tcp", to.String())
	if err == nil {
		_, err = fmt.Fprintf(conn, "PROXY TCP4 %s 192.0.2.255 1234 465\r\n", client)
	}
	return conn, err
}

// conversation is a client's side of an exchange: what it says to each
// challenge, until it has nothing to say.
type conversation func(challenge string) (string, error)

func sasl(mechanism, user, password string, state tls.ConnectionState) (conversation, error) {
	if after, is := strings.CutPrefix(mechanism, "SCRAM-SHA-256"); is {
		client, err := scram.SHA256.NewClient(user, password, "")
		if err != nil {
			return nil, err
		}
		if after == "" {
			return client.NewConversation().Step, nil
		}
		binding, err := scram.NewTLSExporterBinding(&state)
		return client.NewConversationWithChannelBinding(binding).Step, err
	}
	says := []string{user, password}
	if mechanism == "PLAIN" {
		says = []string{"\x00" + user + "\x00" + password}
	}
	return func(string) (string, error) {
		now := says[0]
		says = says[1:]
		return now, nil
	}, nil
}

// attempt is one AUTH exchange on a connection of its own. It returns all
// replies of the server, without what SCRAM makes new for each exchange.
func (d *doors) attempt(process int, client, mechanism, user, password string) (heard []string, err error) {
	raw, err := dial(d.t.Context(), d.all[process].SubmissionsAddr(), client)
	if err != nil {
		return nil, err
	}
	conn := tls.Client(raw, &tls.Config{InsecureSkipVerify: true}) //nolint:gosec // it is self-signed
	defer conn.Close()
	if err := conn.SetDeadline(time.Now().Add(time.Minute)); err != nil {
		return nil, err
	}
	s := &session{conn: conn, in: bufio.NewReader(conn)}
	if _, err := smtp.ReadReply(s.in); err != nil {
		return nil, err
	}
	if _, err := s.say("EHLO client.example\r\n", 1); err != nil {
		return nil, err
	}
	next, err := sasl(mechanism, user, password, conn.ConnectionState())
	if err != nil {
		return nil, err
	}
	reply, err := s.say("AUTH "+mechanism+"\r\n", 1)
	for err == nil && reply.Code == 334 {
		challenge, err := base64.StdEncoding.DecodeString(reply.Text())
		if err != nil {
			return heard, err
		}
		heard = append(heard, "334 "+mask(string(challenge)))
		if mechanism == "LOGIN" || mechanism == "PLAIN" {
			challenge = nil
		}
		answer, err := next(string(challenge))
		if err != nil {
			return heard, err
		}
		if reply, err = s.say(base64.StdEncoding.EncodeToString([]byte(answer))+"\r\n", 1); err != nil {
			return heard, err
		}
	}
	if err != nil {
		return heard, err
	}
	heard = append(heard, reply.String())
	if reply.Code != 535 {
		return heard, nil
	}
	reply, err = s.say("NOOP\r\n", 1) // the session goes on, for everybody
	return append(heard, reply.String()), err
}

// mask writes x for the letters of the nonce and of the salt: their length
// counts, and the iterations.
func mask(challenge string) string {
	fields := strings.Split(challenge, ",")
	if len(fields) < 3 {
		return challenge
	}
	for i, f := range fields[:2] {
		fields[i] = f[:2] + strings.Repeat("x", len(f)-2)
	}
	return strings.Join(fields, ",")
}

// post is a request with an API key: its status, header fields but for the
// date, and body.
func (d *doors) post(process int, client, key string) (string, error) {
	web := &http.Client{Transport: &http.Transport{DisableKeepAlives: true, DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
		return dial(ctx, d.all[process].HTTPAddr(), client)
	}}}
	request, err := http.NewRequestWithContext(d.t.Context(), http.MethodPost, "http://"+d.all[process].HTTPAddr().String()+"/v1/messages?to=b@example.org",
		strings.NewReader("From: a@example.com\r\n\r\nhello\r\n"))
	if err != nil {
		return "", err
	}
	request.Header.Set("Content-Type", "message/rfc822")
	request.Header.Set("Authorization", "Bearer "+key)
	response, err := web.Do(request)
	if err != nil {
		return "", err
	}
	defer response.Body.Close()
	text, err := io.ReadAll(response.Body)
	response.Header.Del("Date")
	return fmt.Sprint(response.Status, " ", response.Header, " ", string(text)), err
}

// Whatever is wrong with a user, a client hears the same in as many round
// trips. TestNobodyStandsOutByTime of package access has the time.
func TestNobodyStandsOutByText(t *testing.T) {
	d := openDoors(t, 1, 1000)
	var wg sync.WaitGroup
	client := 0
	fresh := func() string { // nobody waits for the failures of others
		client++
		return fmt.Sprintf("192.0.2.%d", client)
	}
	var mu sync.Mutex
	heard := map[string]map[string][]string{} // who heard what, by mechanism
	mechanisms := map[string]int{"PLAIN": 1, "LOGIN": 2, "SCRAM-SHA-256": 2, "SCRAM-SHA-256-PLUS": 2}
	for mechanism := range mechanisms {
		heard[mechanism] = map[string][]string{}
		for _, c := range []struct{ user, password string }{
			{"app", "wrong"}, {"nobodi", password}, {"nobodi", "wrong"}, {"disabled", password}, {"disabled", "wrong"}, {"expired", password},
			{"expired", "wrong"}, {"elsewhere", password}, {"elsewhere", "wrong"}, {"app-http", password},
		} {
			from := fresh()
			wg.Go(func() {
				replies, err := d.attempt(0, from, mechanism, c.user, c.password)
				if err != nil {
					t.Errorf("%s, %s: %v", mechanism, c.user, err)
				}
				text := strings.Join(replies, "\n")
				mu.Lock()
				defer mu.Unlock()
				heard[mechanism][text] = append(heard[mechanism][text], c.user+" with "+c.password)
			})
		}
	}
	wg.Wait()
	for mechanism, trips := range mechanisms {
		for text := range heard[mechanism] {
			if n := strings.Count(text, "334 "); len(heard[mechanism]) > 1 || n != trips || !strings.Contains(text, "535 5.7.8") {
				t.Errorf("%s: want one text after %d round trips, got %q", mechanism, trips, heard[mechanism])
				break
			}
		}
		if replies, err := d.attempt(0, fresh(), mechanism, "app", password); err != nil || !strings.HasPrefix(replies[len(replies)-1], "235 2.7.0") {
			t.Errorf("%s, right: %q, %v", mechanism, replies, err)
		}
	}
	unknown, _ := auth.NewKey()
	problems := map[string]string{}
	for name, key := range map[string]string{
		"unknown": unknown, "disabled": d.keys["disabled"], "expired": d.keys["expired"], "of another network": d.keys["elsewhere"],
		"malformed": "pr_x", "a password": password, "of a letter too many": d.keys["app"] + "x",
	} {
		text, err := d.post(0, fresh(), key)
		if err != nil || !strings.HasPrefix(text, "401 ") {
			t.Errorf("key, %s: %s, %v", name, text, err)
		}
		problems[text] += name + "; "
	}
	if len(problems) != 1 {
		t.Errorf("keys are told apart: %q", problems)
	}
	if text, err := d.post(0, fresh(), d.keys["app"]); err != nil || !strings.HasPrefix(text, "202 ") {
		t.Errorf("right key: %s, %v", text, err)
	}
}

// Who has guessed at one process is answered by the other too, by SMTP and by
// HTTP, and learns nothing from a right password any more. An API key is
// nothing that can be guessed: who has it is let in.
func TestGuessersAreKnownToEveryProcess(t *testing.T) {
	const maxFailures = 3
	d := openDoors(t, 2, maxFailures)
	const guesser, other = "192.0.2.1", "192.0.2.2"
	last := func(process int, client, mechanism, user, password string) string {
		t.Helper()
		replies, err := d.attempt(process, client, mechanism, user, password)
		d.must(err)
		return replies[len(replies)-1]
	}
	for i := range maxFailures {
		if _, err := d.attempt(0, guesser, "PLAIN", fmt.Sprintf("guess%d", i), "wrong"); err != nil {
			t.Fatal(err)
		}
	}
	for process := range d.all {
		for _, mechanism := range []string{"PLAIN", "LOGIN", "SCRAM-SHA-256", "SCRAM-SHA-256-PLUS"} {
			for _, c := range []struct{ user, password string }{{"app", password}, {"app", "wrong"}, {"nobody", password}} {
				if reply := last(process, guesser, mechanism, c.user, c.password); !strings.HasPrefix(reply, "421 4.7.0") {
					t.Errorf("process %d, %s of %s with %s: %s", process, mechanism, c.user, c.password, reply)
				}
			}
		}
		unknown, _ := auth.NewKey()
		for _, key := range []string{unknown, d.keys["expired"], "pr_x"} {
			if text, err := d.post(process, guesser, key); err != nil || !strings.HasPrefix(text, "429 ") || !strings.Contains(text, "Retry-After") {
				t.Errorf("process %d, a wrong key: %s, %v", process, text, err)
			}
		}
		if text, err := d.post(process, guesser, d.keys["app"]); err != nil || !strings.HasPrefix(text, "202 ") {
			t.Errorf("process %d, the right key: %s, %v", process, text, err)
		}
	}
	if reply := last(1, other, "PLAIN", "app", password); !strings.HasPrefix(reply, "235 ") {
		t.Errorf("from another address: %s", reply)
	}
	// Guesses at one user from many addresses count for the user.
	var wg sync.WaitGroup
	for i := range 2 * maxFailures {
		wg.Go(func() {
			if _, err := d.attempt(i%2, fmt.Sprintf("198.51.100.%d", i), "PLAIN", "target", fmt.Sprint("wrong", i)); err != nil {
				t.Error(err)
			}
		})
	}
	wg.Wait()
	for process := range d.all {
		if reply := last(process, "198.51.100.200", "PLAIN", "target", "another"); !strings.HasPrefix(reply, "421 4.7.0") {
			t.Errorf("process %d, a user at whom many guessed: %s", process, reply)
		}
	}
}
