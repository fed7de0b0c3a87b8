package load

import (
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/postrider/postrider/tests/internal/proc"
	"github.com/postrider/postrider/tests/world"
)

// mostJSON is POSTRIDER_HTTP_MAX_BODY_BYTES by default.
const mostJSON = 8 << 20

// bombs are requests that are to cost more than they weigh, of about so many
// octets.
func bombs(octets int) map[string]string {
	fill := func(one string) string {
		return strings.TrimSuffix(strings.Repeat(one+",", (octets-1<<10)/(len(one)+1)), ",")
	}
	to := `"from": {"address": "me@acme.example"}, "to": [{"address": "you@crowd.test"}]`
	var members strings.Builder
	for i := 0; members.Len() < octets-1<<10; i++ {
		fmt.Fprintf(&members, `"%x":0,`, i)
	}
	unknown := strings.TrimSuffix(members.String(), ",")
	return map[string]string{
		"unknown members":         `{` + unknown + `}`,
		"members of each header":  `{"headers": [` + fill(`{"a":1}`) + `]}`,
		"faulty recipients":       `{"to": [` + fill(`""`) + `]}`,
		"substitutions":           `{` + to + `, "substitutions": {` + unknown + `}}`,
		"a long value, often":     `{` + to + `, "substitutions": {"a": "` + strings.Repeat("v", octets/2) + `"}, "text": "` + strings.Repeat("{{a}}", octets/20) + `"}`,
		"an empty value, often":   `{` + to + `, "substitutions": {"a": ""}, "text": "` + strings.Repeat("{{a}}", octets/6) + `"}`,
		"brackets without an end": strings.Repeat("[", octets-1<<10),
	}
}

// poster is an HTTP client at an address of its own.
type poster struct {
	http.Client
	url, key string
}

func newPoster(w *world.World, client int, key string) *poster {
	from := net.TCPAddrFromAddrPort(netip.AddrPortFrom(netip.MustParseAddr(w.Address(100+client)), 0))
	return &poster{http.Client{Transport: &http.Transport{DialContext: (&net.Dialer{LocalAddr: from}).DialContext}}, w.HTTP(0) + "/v1/messages", key}
}

// post returns the status of the answer; 0 says that the connection ended
// without one, as it may for whoever sends on after a refusal.
func (p *poster) post(ctx context.Context, body string) (status int, err error) {
	r, err := http.NewRequestWithContext(ctx, http.MethodPost, p.url, strings.NewReader(body))
	if err != nil {
		return 0, err
	}
	r.Header.Set("Authorization", "Bearer "+p.key)
	r.Header.Set("Content-Type", "application/json")
	res, err := p.Do(r)
	if err != nil {
		return 0, ctx.Err()
	}
	defer res.Body.Close()
	_, err = io.Copy(io.Discard, res.Body)
	return res.StatusCode, err
}

// TestHTTPBombs: many clients post what is to cost more than it weighs. Memory
// stays within the budget, what a bomb costs grows as its length does, none
// is accepted, and a client beside them has all its mail accepted.
func TestHTTPBombs(t *testing.T) {
	clients, rounds := 8, 1
	if full() {
		clients, rounds = 80, 3
	}
	const budget = 64 << 20 // POSTRIDER_HTTP_MEMORY_BYTES by default
	w := start(t, map[string]string{})
	for _, command := range []string{"tenant add acme", "domain add acme.example --tenant acme"} {
		if err := w.Command(t.Context(), strings.Fields(command)...); err != nil {
			t.Fatal(err)
		}
	}
	out, err := w.Output(t.Context(), strings.Fields("credential add app --tenant acme --api-key")...)
	if err != nil {
		t.Fatal(err)
	}
	key := strings.Fields(out[strings.Index(out, "pr_"):])[0]
	alone := resident(t, w)

	large, small := bombs(mostJSON), bombs(mostJSON/8)
	over, stop := context.WithCancel(t.Context())
	var beside errgroup.Group
	var accepted, later atomic.Int64
	beside.Go(func() error {
		p := newPoster(w, 99, key)
		for over.Err() == nil || accepted.Load() == 0 {
			status, err := p.post(t.Context(), `{"from": {"address": "me@acme.example"}, "to": [{"address": "you@crowd.test"}], "subject": "beside", "text": "a"}`)
			switch {
			case err != nil:
				return err
			case status == http.StatusAccepted:
				accepted.Add(1)
			case status == http.StatusTooManyRequests || status == 0:
				later.Add(1) // it tries again, as it is told to
			default:
				return fmt.Errorf("the client beside the bombs hears %d", status)
			}
		}
		return nil
	})
	var crowd errgroup.Group
	for i := range clients {
		crowd.Go(func() error {
			p := newPoster(w, i, key)
			for range rounds {
				for name, body := range large {
					switch status, err := p.post(t.Context(), body); {
					case err != nil:
						return err
					case status == http.StatusAccepted || status >= 500 && status != http.StatusServiceUnavailable:
						return fmt.Errorf("%s: %d", name, status)
					}
				}
			}
			return nil
		})
	}
	if err := crowd.Wait(); err != nil {
		t.Fatal(err)
	}
	stop()
	if err := beside.Wait(); err != nil {
		t.Fatal(err)
	}
	used := resident(t, w)
	t.Logf("%d clients with %d bombs of %s each: %s resident at most, before them %s; beside them %d messages were accepted, %d were to be tried again",
		clients, rounds*len(large), mib(mostJSON), mib(used.Peak), mib(alone.Now), accepted.Load(), later.Load())
	if used.Peak > budget+64<<20 {
		t.Errorf("ingress had %s, want at most %s", mib(used.Peak), mib(budget+64<<20))
	}

	p := newPoster(w, 98, key)
	for name := range large {
		one, eight := spent(t, w, p, large[name], 1), spent(t, w, p, small[name], 8)
		if one > 4*eight+200*time.Millisecond {
			t.Errorf("%s: %v of CPU for one of %s, %v for eight of an eighth: it grows faster than its length", name, one, mib(mostJSON), eight)
		}
	}
}

// spent is the CPU that ingress takes to refuse a request so many times.
func spent(t *testing.T, w *world.World, p *poster, body string, times int) time.Duration {
	t.Helper()
	cpu := func() time.Duration {
		tree, err := proc.ReadTree()
		if err != nil {
			t.Fatal(err)
		}
		return tree.CPU(w.Service("ingress", 0).Process().PID())
	}
	before := cpu()
	for range times {
		if status, err := p.post(t.Context(), body); err != nil || status == http.StatusAccepted {
			t.Fatal(status, err)
		}
	}
	return cpu() - before
}
