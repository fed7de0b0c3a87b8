package chaos

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"net/http"
	"strings"
	"sync"
	"syscall"
	"testing"

	"golang.org/x/sync/errgroup"

	"github.com/postrider/postrider/pkg/smtptest"
	"github.com/postrider/postrider/tests/internal/proc"
	"github.com/postrider/postrider/tests/internal/submit"
	"github.com/postrider/postrider/tests/world"
)

// promises are what clients were told of the messages that they sent. Each
// message has a recipient of its own.
type promises struct {
	mu      sync.Mutex
	told    map[string]string // queue id of the 250 or 202, by forward-path
	refused int               // 451, 503, or a connection that broke
}

func (p *promises) note(path, id string) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if id == "" {
		p.refused++
		return
	}
	p.told[path] = id
}

func (p *promises) counts() (told, refused int) {
	p.mu.Lock()
	defer p.mu.Unlock()
	return len(p.told), p.refused
}

// crowd is clients that send until they are stopped.
type crowd struct {
	*world.World
	key        string // of HTTP clients
	smtp, http promises
}

const crowdDomain = "crowd.test"

// bySMTP sends messages in one session after another.
func (c *crowd) bySMTP(ctx context.Context, client int) error {
	for n := 0; ctx.Err() == nil; {
		s, err := submit.Dial(ctx, c.SMTP(client%2), "")
		if err == nil {
			_, err = s.Command("EHLO client.example")
		}
		for err == nil && ctx.Err() == nil {
			n++
			path := fmt.Sprintf("s%d-%d@%s", client, n, crowdDomain)
			var id string
			id, err = s.Submit(submit.Message{From: from, To: []string{path}, Content: []byte("Subject: " + path + "\r\n\r\nhello\r\n")})
			if c.smtp.note(path, id); err != nil && strings.Contains(err.Error(), "final dot: 451") {
				err = nil // the session goes on with the next message
			}
		}
		if s != nil {
			_ = s.Close() // whatever state it is in
		}
	}
	return nil
}

// byHTTP sends messages with an idempotency key, each until it is accepted.
func (c *crowd) byHTTP(ctx context.Context, client int) error {
	for n := 0; ctx.Err() == nil; n++ {
		path := fmt.Sprintf("h%d-%d@%s", client, n, crowdDomain)
		for accepted := false; !accepted && ctx.Err() == nil; {
			id, err := c.post(ctx, client, path)
			if err != nil && ctx.Err() == nil {
				return err
			}
			c.http.note(path, id)
			accepted = id != ""
		}
	}
	return nil
}

// post returns the queue id of a 202; "": there was none. An error is an
// answer that nobody may get.
func (c *crowd) post(ctx context.Context, client int, path string) (string, error) {
	body := fmt.Sprintf(`{"from":{"address":%q},"recipients":[{"address":%q}],"subject":"s","text":"hello"}`, from, path)
	r, err := http.NewRequestWithContext(ctx, http.MethodPost, c.HTTP(client%2)+"/v1/messages", strings.NewReader(body))
	if err != nil {
		return "", err
	}
	r.Header.Set("Content-Type", "application/json")
	r.Header.Set("Authorization", "Bearer "+c.key)
	r.Header.Set("Idempotency-Key", path)
	response, err := http.DefaultClient.Do(r)
	if err != nil {
		return "", nil //nolint:nilerr // the connection broke: the client knows nothing
	}
	defer response.Body.Close()
	text, err := io.ReadAll(response.Body)
	switch {
	case err != nil:
		return "", nil //nolint:nilerr // as above
	case response.StatusCode == http.StatusServiceUnavailable, response.StatusCode == http.StatusConflict, response.StatusCode == http.StatusTooManyRequests:
		return "", nil
	case response.StatusCode != http.StatusAccepted:
		return "", fmt.Errorf("%s: %s", response.Status, text)
	}
	var receipt struct{ Messages []struct{ ID string } }
	if err := json.Unmarshal(text, &receipt); err != nil || len(receipt.Messages) != 1 {
		return "", fmt.Errorf("receipt %s: %w", text, err)
	}
	return receipt.Messages[0].ID, nil
}

// waitMore waits until so many more are accepted, and refused, by each way.
func (c *crowd) waitMore(t *testing.T, accepted, refused int) {
	t.Helper()
	all := map[string]*promises{"SMTP": &c.smtp, "HTTP": &c.http}
	type count struct{ accepted, refused int }
	want := map[string]count{}
	for way, p := range all {
		a, r := p.counts()
		want[way] = count{a + accepted, r + refused}
	}
	c.Eventually(t, drained, "clients are served, or not", func(context.Context) error {
		for way, p := range all {
			if a, r := p.counts(); a < want[way].accepted || r < want[way].refused {
				return fmt.Errorf("%s: %d accepted, %d refused, want %v", way, a, r, want[way])
			}
		}
		return nil
	})
}

// freeze stops Postgres without ending it, as a disk or a hypervisor does
// that hangs.
func (c *crowd) freeze(sig syscall.Signal) error {
	tree, err := proc.ReadTree()
	if err != nil {
		return err
	}
	var errs []error
	for _, pid := range append(tree.Under(c.PG.PID()), c.PG.PID()) {
		if err := syscall.Kill(pid, sig); err != nil && !errors.Is(err, syscall.ESRCH) {
			errs = append(errs, err)
		}
	}
	return errors.Join(errs...)
}

// TestAcceptedIsStored: Postgres freezes, crashes, and is shut down in
// mid-load. Nobody gets a 250 or a 202 for a message that is not stored, and
// every message that had one is stored once, HTTP clients repeating theirs
// until they hear 202.
func TestAcceptedIsStored(t *testing.T) {
	c := &crowd{World: world.Start(t, world.Options{Copies: 2, Env: map[string]string{"POSTRIDER_SMTP_COMMIT_TIMEOUT": "2s"}})}
	c.smtp.told, c.http.told = map[string]string{}, map[string]string{}
	c.Host(t, "mx."+crowdDomain, smtptest.Script{Discard: true})
	c.MX(t, crowdDomain, "10 mx."+crowdDomain)
	for _, command := range []string{"tenant add acme", "domain add sender.test --tenant acme"} {
		if err := c.Command(t.Context(), strings.Fields(command)...); err != nil {
			t.Fatal(err)
		}
	}
	out, err := c.Output(t.Context(), strings.Fields("credential add app --tenant acme --api-key")...)
	if err != nil {
		t.Fatal(err)
	}
	c.key = out[strings.Index(out, "pr_"):]
	c.key = strings.Fields(c.key)[0]

	sending, stop := context.WithCancel(t.Context())
	clients, sending := errgroup.WithContext(sending)
	t.Cleanup(func() { stop(); _ = clients.Wait() }) // after a failure; below has asked before
	for i := range 6 {
		clients.Go(func() error { return c.bySMTP(sending, i) })
		clients.Go(func() error { return c.byHTTP(sending, i) })
	}
	for _, tc := range []struct {
		name       string
		stop, heal func() error
	}{
		{"freeze", func() error { return c.freeze(syscall.SIGSTOP) }, func() error { return c.freeze(syscall.SIGCONT) }},
		{"crash", c.PG.Kill, func() error { return c.PG.Restart(t.Context()) }},
		{"halt", c.PG.Halt, func() error { return c.PG.Restart(t.Context()) }},
	} {
		c.waitMore(t, 50, 0)
		if err := tc.stop(); err != nil {
			t.Fatalf("%s: %v", tc.name, err)
		}
		c.waitMore(t, 0, 6)
		if err := tc.heal(); err != nil {
			t.Fatalf("%s: %v", tc.name, err)
		}
	}
	c.waitMore(t, 50, 0)
	stop()
	if err := clients.Wait(); err != nil {
		t.Errorf("a client got what nobody may get: %v", err)
	}
	c.WaitIdle(t, drained)
	c.judge(t)
}

// judge holds what clients were told against what is stored.
func (c *crowd) judge(t *testing.T) {
	t.Helper()
	rows, err := c.DB.Query(t.Context(), `SELECT forward_path, queue_id::text FROM postrider.recipients`)
	if err != nil {
		t.Fatal(err)
	}
	defer rows.Close()
	stored := map[string][]string{}
	for rows.Next() {
		var path, id string
		if err := rows.Scan(&path, &id); err != nil {
			t.Fatal(err)
		}
		stored[path] = append(stored[path], id)
	}
	if err := rows.Err(); err != nil {
		t.Fatal(err)
	}
	told := maps.Clone(c.smtp.told)
	maps.Copy(told, c.http.told)
	for path, id := range told {
		if is := stored[path]; len(is) != 1 || is[0] != id {
			t.Errorf("%s: the client was told %s, stored is %v", path, id, is)
		}
	}
	for path, ids := range stored {
		if len(ids) != 1 {
			t.Errorf("%s is stored %d times", path, len(ids))
		}
	}
	_, smtpRefused := c.smtp.counts()
	_, httpRefused := c.http.counts()
	t.Logf("%d accepted by SMTP (%d refused), %d by HTTP (%d); %d stored",
		len(c.smtp.told), smtpRefused, len(c.http.told), httpRefused, len(stored))
}
