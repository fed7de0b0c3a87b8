package e2e

import (
	"bytes"
	"context"
	"fmt"
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/nats-io/nats.go"
	"google.golang.org/protobuf/proto"

	"github.com/postrider/postrider/pkg/smtptest"
	pb "github.com/postrider/postrider/proto/postrider/v1"
	"github.com/postrider/postrider/tests/internal/submit"
)

// TestStrangerOnTheBus: somebody who reaches NATS hears the frames of a message
// that waits, and publishes: frames that lead it to a host and a recipient of
// his own, the same frames again, and such as nobody can serve. The message is
// tried as often as without him, and goes where it should.
func TestStrangerOnTheBus(t *testing.T) {
	w := shared.Get(t)
	host := w.Host(t, "mx.coveted.test", smtptest.Script{Rules: []smtptest.Rule{
		{At: smtptest.Rcpt, Times: 3, Do: smtptest.Reply(451, "4.2.1 not now")},
	}})
	w.MX(t, "coveted.test", "10 mx.coveted.test")
	thief := w.Host(t, "mx.thief.test", smtptest.Script{})
	nc, err := nats.Connect(w.NATSURL())
	if err != nil {
		t.Fatal(err)
	}
	defer nc.Close()
	heard := make(chan *nats.Msg, 1000)
	if _, err := nc.ChanSubscribe("postrider.ready.*", heard); err != nil {
		t.Fatal(err)
	}
	if err := nc.Flush(); err != nil {
		t.Fatal(err)
	}

	sent := content("coveted")
	id := send(t, w, 0, submit.Message{From: "sender@sender.test", To: []string{"a@coveted.test"}, Content: sent})
	m, frame := hear(t, heard, "a@coveted.test")
	stop := background(t, func(ctx context.Context) error {
		for ctx.Err() == nil {
			for subject, forged := range forgeries(t, m, frame, thief.Addr()) {
				if err := nc.Publish(subject, forged); err != nil {
					return err
				}
			}
			if err := nc.Publish(m.Subject, m.Data); err != nil {
				return err
			}
			select {
			case <-ctx.Done():
			case <-time.After(50 * time.Millisecond):
			}
		}
		return nil
	})
	waitState(t, w, id, "relayed")
	stop()

	wantIntact(t, only(t, host), sent)
	if n := thief.Count(); n > 0 {
		t.Errorf("%d messages went to the thief", n)
	}
	var attempts, claims int
	err = w.DB.QueryRow(t.Context(), `SELECT count(*), max(attempt) FROM postrider.attempts WHERE queue_id = $1`, id).Scan(&attempts, &claims)
	if err != nil || attempts != 4 || claims != 4 {
		t.Errorf("%d attempts in the history, the last is number %d, want 4 and 4: %v", attempts, claims, err)
	}
	w.Eventually(t, deadline, "what he published is counted", func(ctx context.Context) error {
		refused := 0.0
		for i := range 2 {
			n, err := w.Service("delivery", i).Metric(ctx, "postrider_bus_frames_refused_total")
			if err == nil {
				refused += n
			}
		}
		if refused < 10 {
			return fmt.Errorf("%.0f frames are refused", refused)
		}
		return nil
	})
	w.WaitIdle(t, deadline)
}

// background runs f until stop is called.
func background(t *testing.T, f func(context.Context) error) (stop func()) {
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- f(ctx) }()
	return func() {
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
	}
}

// hear waits for the frame that has a recipient.
func hear(t *testing.T, heard <-chan *nats.Msg, recipient string) (*nats.Msg, *pb.ReadyFrame) {
	t.Helper()
	late := time.After(deadline)
	for {
		select {
		case m := <-heard:
			if !bytes.Contains(m.Data, []byte(recipient)) {
				continue
			}
			frame := new(pb.ReadyFrame)
			if err := proto.Unmarshal(m.Data, frame); err != nil {
				t.Fatal(err)
			}
			return m, frame
		case <-late:
			t.Fatal("no frame is heard")
		}
	}
}

// forgeries are frames, by subject, made of one that was heard.
func forgeries(t *testing.T, m *nats.Msg, heard *pb.ReadyFrame, thief netip.AddrPort) map[string][]byte {
	t.Helper()
	var request *pb.DeliveryRequest
	for _, r := range heard.GetRequests() {
		if strings.HasSuffix(r.GetRecipients()[0].GetForwardPath(), "@coveted.test") {
			request = r
		}
	}
	address := thief.Addr().As4()
	routes := []*pb.Route{
		{Site: "thief", Hosts: []*pb.Host{{Name: "thief.test", Port: uint32(thief.Port()), Addresses: [][]byte{address[:]}}}, ExpiresAtUs: time.Now().Add(time.Hour).UnixMicro()},
		{Site: "nowhere"},
		{Hosts: []*pb.Host{{Name: "x"}}},
	}
	frame := &pb.ReadyFrame{Routes: routes, Seal: heard.GetSeal()}
	for route := range routes {
		for attempt := range int32(6) {
			r := proto.CloneOf(request)
			r.Route = uint32(route)
			r.Recipients = r.Recipients[:1]
			r.Recipients[0].Attempt, r.Recipients[0].ForwardPath = attempt, "me@thief.test"
			frame.Requests = append(frame.Requests, r)
		}
	}
	marshal := func(m proto.Message) []byte {
		b, err := proto.Marshal(m)
		if err != nil {
			t.Error(err)
		}
		return b
	}
	out := map[string][]byte{m.Subject: marshal(frame)}
	// The worker behind each id may be the home of the forged site.
	for worker := range 10 {
		subject := fmt.Sprintf("postrider.ready.%d", worker+1)
		frame.Seal = nil
		if worker%2 == 0 {
			frame.Seal = heard.GetSeal()
		}
		out[subject] = marshal(frame)
	}
	out["postrider.queued"] = marshal(&pb.QueuedFrame{Messages: []*pb.QueuedMessage{{Message: request.GetMessage(), Recipients: frame.GetRequests()[0].GetRecipients()}}})
	out["postrider.notice.ways"] = marshal(&pb.WaysFrame{Ways: []*pb.Way{{Domain: "coveted.test", Worker: 1, ValidUs: 1e9, Route: routes[0]}}})
	out["postrider.failed"] = m.Data[:len(m.Data)/2]
	return out
}
