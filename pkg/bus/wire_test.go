package bus

import (
	"bytes"
	"errors"
	"fmt"
	"net/netip"
	"reflect"
	"slices"
	"strings"
	"testing"
	"time"

	"google.golang.org/protobuf/proto"
	"pgregory.net/rapid"

	"github.com/postrider/postrider/pkg/mail"
	pb "github.com/postrider/postrider/proto/postrider/v1"
)

// Everything that package mail can hold must survive the wire, whatever
// octets a client put into it; but for what is checked in check.go.

func drawText(t *rapid.T, label string) string {
	return string(rapid.SliceOfN(rapid.Byte(), 0, 40).Draw(t, label))
}

// drawName draws text that is not empty and has no controls.
func drawName(t *rapid.T, label string) string {
	b := rapid.SliceOfN(rapid.Byte().Filter(func(b byte) bool { return b >= ' ' && b != 0x7f }), 1, 40)
	return string(b.Draw(t, label))
}

func drawTexts(t *rapid.T, label string) []string {
	return rapid.SliceOfN(rapid.Custom(func(t *rapid.T) string { return drawText(t, label) }), 1, 3).Draw(t, label)
}

func drawTime(t *rapid.T, label string) time.Time {
	us := rapid.Int64Range(-1e15, 1e16).Draw(t, label)
	if us == 0 {
		return time.Time{}
	}
	return time.UnixMicro(us).UTC()
}

func drawMessage(t *rapid.T) mail.Message {
	id := mail.NewQueueID()
	return mail.Message{
		ID: id,
		Envelope: mail.Envelope{
			ReversePath: mail.ReversePath(drawName(t, "reverse-path")),
			Body:        mail.BodyType(drawText(t, "body")),
			SMTPUTF8:    rapid.Bool().Draw(t, "smtputf8"),
			Ret:         mail.Ret(drawText(t, "ret")),
			EnvID:       drawText(t, "envid"),
			RequireTLS:  rapid.Bool().Draw(t, "requiretls"),
			DeliverBy:   drawDeliverBy(t),
		},
		Campaign:    drawText(t, "campaign"),
		TLSOptional: rapid.Bool().Draw(t, "tls optional"),
		Tenant:      drawText(t, "tenant"),
		Priority:    rapid.Int16().Draw(t, "priority"),
		SizeBytes:   rapid.Int64Min(0).Draw(t, "size"),
		AcceptedAt:  drawTime(t, "accepted"),
		Traceparent: drawText(t, "traceparent"),
	}
}

func drawDeliverBy(t *rapid.T) mail.DeliverBy {
	at := drawTime(t, "by")
	if at.IsZero() {
		return mail.DeliverBy{}
	}
	return mail.DeliverBy{At: at, Return: rapid.Bool().Draw(t, "by return"), Trace: rapid.Bool().Draw(t, "by trace")}
}

func drawPending(t *rapid.T) mail.Pending {
	return mail.Pending{
		Recipient: mail.Recipient{
			No:          rapid.Int32Min(1).Draw(t, "no"),
			ForwardPath: mail.ForwardPath(drawName(t, "forward-path")),
			Domain:      mail.Domain(drawName(t, "domain")),
			Notify:      mail.Notify(rapid.Uint8().Draw(t, "notify")),
			ORCPT:       drawText(t, "orcpt"),
			ExpiresAt:   drawTime(t, "expires"),
		},
		Attempt: rapid.Int32Min(0).Draw(t, "attempt"),
		Tries:   rapid.Int16Min(0).Draw(t, "tries"),
	}
}

func drawAddr(t *rapid.T) netip.Addr {
	if rapid.Bool().Draw(t, "v4") {
		return netip.AddrFrom4([4]byte(rapid.SliceOfN(rapid.Byte(), 4, 4).Draw(t, "a4")))
	}
	a := netip.AddrFrom16([16]byte(rapid.SliceOfN(rapid.Byte(), 16, 16).Draw(t, "a16")))
	return a.WithZone(rapid.StringMatching(`[a-z]{0,4}`).Draw(t, "zone"))
}

func drawHost(t *rapid.T) mail.Host {
	return mail.Host{
		Name:       drawName(t, "host"),
		Preference: rapid.Uint16().Draw(t, "preference"),
		Port:       rapid.Uint16Min(1).Draw(t, "port"),
		Addresses:  rapid.SliceOfN(rapid.Custom(drawAddr), 1, 4).Draw(t, "addresses"),
		DANE:       mail.DANE(drawText(t, "dane")),
		TLSA:       append([]mail.TLSA(nil), rapid.SliceOfN(rapid.Custom(drawTLSA), 0, 3).Draw(t, "tlsa")...),
		Names:      append([]string(nil), rapid.SliceOfN(rapid.Custom(func(t *rapid.T) string { return drawText(t, "name") }), 0, 3).Draw(t, "names")...),
		OutsideSTS: rapid.Bool().Draw(t, "outside"),
	}
}

func drawTLSA(t *rapid.T) mail.TLSA {
	return mail.TLSA{
		Usage: rapid.Uint8().Draw(t, "usage"), Selector: rapid.Uint8().Draw(t, "selector"), Matching: rapid.Uint8().Draw(t, "matching"),
		Data: rapid.SliceOfN(rapid.Byte(), 1, 64).Draw(t, "data"),
	}
}

func drawRoute(t *rapid.T) *mail.Route {
	return &mail.Route{
		Site:      mail.Site(drawName(t, "site")),
		Hosts:     rapid.SliceOfN(rapid.Custom(drawHost), 1, 4).Draw(t, "hosts"),
		TLS:       mail.TLSLevel(drawText(t, "tls")),
		SmartHost: rapid.Bool().Draw(t, "smart"),
		ExpiresAt: drawTime(t, "route expires"),

		Rule:        rapid.Int32().Draw(t, "rule"),
		Pool:        drawText(t, "pool"),
		Credential:  drawText(t, "credential"),
		LMTP:        rapid.Bool().Draw(t, "lmtp"),
		ImplicitTLS: rapid.Bool().Draw(t, "implicit TLS"),

		STS:      mail.STS(drawText(t, "sts")),
		SecureMX: rapid.Bool().Draw(t, "secure MX"),
		Report:   drawReport(t),
	}
}

func drawReport(t *rapid.T) *mail.TLSReport {
	if rapid.Bool().Draw(t, "no report") {
		return nil
	}
	return &mail.TLSReport{
		Domain: mail.Domain(drawText(t, "report domain")), RUA: drawTexts(t, "rua"), STSPolicy: drawTexts(t, "policy"), Fault: drawText(t, "fault"),
	}
}

func collect(t interface{ Fatal(...any) }, fill func(*framer) error) [][]byte {
	var all [][]byte
	err := frames(func(frame []byte) error {
		all = append(all, bytes.Clone(frame))
		return nil
	}, fill)
	if err != nil {
		t.Fatal(err)
	}
	return all
}

func TestQueuedRoundTrip(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		want := rapid.SliceOfN(rapid.Custom(func(t *rapid.T) mail.QueuedMessage {
			return mail.QueuedMessage{
				Message:    drawMessage(t),
				Recipients: rapid.SliceOfN(rapid.Custom(drawPending), 1, 5).Draw(t, "recipients"),
			}
		}), 1, 8).Draw(t, "messages")
		var got []mail.QueuedMessage
		for _, frame := range collect(t, fillQueued(want)) {
			var err error
			if got, err = decodeQueued(got, frame); err != nil {
				t.Fatal(err)
			}
		}
		if !reflect.DeepEqual(got, want) {
			t.Fatalf("got  %+v\nwant %+v", got, want)
		}
	})
}

func fillQueued(messages []mail.QueuedMessage) func(*framer) error {
	return func(f *framer) error {
		for i := range messages {
			if err := f.addQueued(&messages[i], messages[i].Recipients); err != nil {
				return err
			}
		}
		return nil
	}
}

func fillReady(requests []*mail.DeliveryRequest) func(*framer) error {
	return func(f *framer) error {
		for _, r := range requests {
			if err := f.addRequest(r, r.Recipients); err != nil {
				return err
			}
		}
		return nil
	}
}

func TestReadyRoundTrip(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		routes := rapid.SliceOfN(rapid.Custom(drawRoute), 1, 4).Draw(t, "routes")
		want := rapid.SliceOfN(rapid.Custom(func(t *rapid.T) *mail.DeliveryRequest {
			return &mail.DeliveryRequest{
				Message:    drawMessage(t),
				Route:      rapid.SampledFrom(routes).Draw(t, "route"),
				Recipients: rapid.SliceOfN(rapid.Custom(drawPending), 1, 5).Draw(t, "recipients"),
			}
		}), 1, 8).Draw(t, "requests")
		var got []*mail.DeliveryRequest
		for _, frame := range collect(t, fillReady(want)) {
			var err error
			if got, err = decodeReady(got, frame); err != nil {
				t.Fatal(err)
			}
		}
		if !reflect.DeepEqual(got, want) {
			t.Fatalf("got  %+v\nwant %+v", got, want)
		}
	})
}

// fullMessage has every field of the vocabulary set: a field that is added to
// package mail and forgotten here or on the wire fails TestNoFieldIsForgotten.
func fullMessage() mail.Message {
	return mail.Message{
		ID: mail.NewQueueID(),
		Envelope: mail.Envelope{
			ReversePath: "a@example.com", Body: mail.Body8BitMIME, SMTPUTF8: true, Ret: mail.RetHdrs, EnvID: "env",
			RequireTLS: true, DeliverBy: mail.DeliverBy{At: time.UnixMicro(1700000000000004).UTC(), Return: true, Trace: true},
		},
		Tenant: "t", Campaign: "c", TLSOptional: true, Priority: -3, SizeBytes: 4096, AcceptedAt: time.UnixMicro(1700000000000001).UTC(),
		Traceparent: "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01",
	}
}

func fullPending(no int32) mail.Pending {
	return mail.Pending{
		Recipient: mail.Recipient{
			No: no, ForwardPath: mail.ForwardPath(fmt.Sprintf("r%d@example.org", no)), Domain: "example.org",
			Notify: mail.NotifyFailure, ORCPT: "rfc822;r@example.org", ExpiresAt: time.UnixMicro(1700000000000002).UTC(),
		},
		Attempt: 7, Tries: 3,
	}
}

func fullRoute() *mail.Route {
	return &mail.Route{
		Site: "mx.example.org", TLS: mail.TLSVerify, SmartHost: true, ExpiresAt: time.UnixMicro(1700000000000003).UTC(),
		Rule: 12, Pool: "warm", Credential: "relay", LMTP: true, ImplicitTLS: true,
		STS: mail.STSEnforce, SecureMX: true,
		Report: &mail.TLSReport{Domain: "example.org", RUA: []string{"mailto:a@example.org"}, STSPolicy: []string{"mode: enforce"}, Fault: "sts-webpki-invalid"},
		Hosts: []mail.Host{{
			Name: "mx1.example.org", Preference: 10, Port: 25, Addresses: []netip.Addr{netip.MustParseAddr("192.0.2.1")},
			DANE: mail.DANEUsable, TLSA: []mail.TLSA{{Usage: 3, Selector: 1, Matching: 1, Data: []byte("digest")}},
			Names: []string{"example.org"}, OutsideSTS: true,
		}},
	}
}

func TestNoFieldIsForgotten(t *testing.T) {
	want := &mail.DeliveryRequest{Message: fullMessage(), Route: fullRoute(), Recipients: []mail.Pending{fullPending(1)}}
	assertNoZeroField(t, reflect.ValueOf(*want), "DeliveryRequest")
	got, err := decodeReady(nil, collect(t, fillReady([]*mail.DeliveryRequest{want}))[0])
	if err != nil {
		t.Fatal(err)
	}
	if !reflect.DeepEqual(got[0], want) {
		t.Errorf("got  %+v\nwant %+v", got[0], want)
	}
}

func TestWaysRoundTrip(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		var want []Way
		for range rapid.IntRange(1, 5).Draw(t, "ways") {
			want = append(want, Way{
				Domain: mail.Domain(drawText(t, "domain")),
				Worker: mail.WorkerID(rapid.Int32().Draw(t, "worker")),
				Route:  drawRoute(t),
				Valid:  time.Duration(rapid.Int32().Draw(t, "valid")) * time.Microsecond,
			})
		}
		var got []Way
		for _, frame := range collect(t, fillWays(want)) {
			ways, err := decodeWays(frame)
			if err != nil {
				t.Fatal(err)
			}
			got = append(got, ways...)
		}
		if !reflect.DeepEqual(got, want) {
			t.Fatalf("got  %+v\nwant %+v", got, want)
		}
	})
}

func fillWays(ways []Way) func(*framer) error {
	return func(f *framer) error {
		for i := range ways {
			if err := f.addWay(&ways[i]); err != nil {
				return err
			}
		}
		return nil
	}
}

func assertNoZeroField(t *testing.T, v reflect.Value, path string) {
	t.Helper()
	switch {
	case v.IsZero():
		t.Errorf("%s is zero: set it in the test and carry it on the wire", path)
	case v.Kind() == reflect.Pointer:
		assertNoZeroField(t, v.Elem(), path)
	case v.Kind() == reflect.Slice && v.Type().Elem().Kind() == reflect.Struct && v.Len() > 0:
		assertNoZeroField(t, v.Index(0), path+"[0]")
	case v.Kind() == reflect.Struct && strings.HasSuffix(v.Type().PkgPath(), "pkg/mail"):
		for i := range v.NumField() {
			// What is not exported each process finds out for itself.
			if f := v.Type().Field(i); f.IsExported() {
				assertNoZeroField(t, v.Field(i), path+"."+f.Name)
			}
		}
	}
}

func TestFramesAreBounded(t *testing.T) {
	message := mail.QueuedMessage{Message: fullMessage()}
	for no := range int32(1000) {
		message.Recipients = append(message.Recipients, fullPending(no+1))
	}
	many := make([]mail.QueuedMessage, 20)
	for i := range many {
		many[i] = message
		many[i].ID = mail.NewQueueID()
	}
	var requests []*mail.DeliveryRequest
	route := fullRoute()
	for i := range many {
		requests = append(requests, &mail.DeliveryRequest{Message: many[i].Message, Route: route, Recipients: many[i].Recipients})
	}
	ids := make([]mail.QueueID, 10000)
	for i := range ids {
		ids[i] = mail.NewQueueID()
	}
	for _, c := range []struct {
		name   string
		fill   func(*framer) error
		decode func([]byte) (int, error)
		want   int
	}{
		{"queued", fillQueued(many), func(b []byte) (n int, err error) {
			got, err := decodeQueued(nil, b)
			for _, m := range got {
				n += len(m.Recipients)
			}
			return n, err
		}, 20 * 1000},
		{"ready", fillReady(requests), func(b []byte) (n int, err error) {
			got, err := decodeReady(nil, b)
			for _, r := range got {
				n += len(r.Recipients)
			}
			return n, err
		}, 20 * 1000},
		{"failed", func(f *framer) error {
			for _, id := range ids {
				if err := f.addFailed(id); err != nil {
					return err
				}
			}
			return nil
		}, func(b []byte) (int, error) {
			got, err := decodeFailed(nil, b)
			return len(got), err
		}, 10000},
	} {
		t.Run(c.name, func(t *testing.T) {
			total, bytes := 0, 0
			all := collect(t, c.fill)
			for i, frame := range all {
				if len(frame) > maxFrame {
					t.Errorf("frame %d has %d bytes, want at most %d", i, len(frame), maxFrame)
				}
				n, err := c.decode(frame)
				if err != nil {
					t.Fatal(err)
				}
				total += n
				bytes += len(frame)
			}
			if total != c.want {
				t.Errorf("%d items in all frames, want %d", total, c.want)
			}
			if enough := bytes/(maxFrame/2) + 1; len(all) > enough {
				t.Errorf("%d frames for %d bytes, want at most %d: frames must be filled", len(all), bytes, enough)
			}
		})
	}
}

func TestRoutesAreSharedInAFrame(t *testing.T) {
	shared, equal, other := fullRoute(), fullRoute(), fullRoute()
	other.TLS = mail.TLSNone
	var requests []*mail.DeliveryRequest
	for _, route := range []*mail.Route{shared, equal, other, shared} {
		requests = append(requests, &mail.DeliveryRequest{Message: fullMessage(), Route: route, Recipients: []mail.Pending{fullPending(1)}})
	}
	frame := collect(t, fillReady(requests))[0]
	var wire pb.ReadyFrame
	if err := proto.Unmarshal(frame, &wire); err != nil {
		t.Fatal(err)
	}
	if len(wire.GetRoutes()) != 2 {
		t.Errorf("%d routes in the frame, want 2", len(wire.GetRoutes()))
	}
	got, err := decodeReady(nil, frame)
	if err != nil {
		t.Fatal(err)
	}
	if got[0].Route != got[1].Route || got[0].Route != got[3].Route || got[2].Route == got[0].Route {
		t.Error("requests with equal routes do not share one, or others do")
	}
}

func TestDecodeRefuses(t *testing.T) {
	id := mail.NewQueueID()
	message := &pb.Message{QueueId: id[:]}
	someHost := []*pb.Host{{Name: "x", Port: 25, Addresses: [][]byte{{192, 0, 2, 1}}}}
	ready := func(r *pb.Route) *pb.ReadyFrame { return &pb.ReadyFrame{Routes: []*pb.Route{r}} }
	for _, c := range []struct {
		name  string
		frame proto.Message
		want  string
	}{
		{"queue id too short", &pb.QueuedFrame{Messages: []*pb.QueuedMessage{{Message: &pb.Message{QueueId: id[:15]}}}}, "15 octets"},
		{"no message", &pb.QueuedFrame{Messages: []*pb.QueuedMessage{{}}}, "0 octets"},
		{"zero queue id", &pb.QueuedFrame{Messages: []*pb.QueuedMessage{{Message: &pb.Message{QueueId: make([]byte, 16)}}}}, "zero"},
		{"priority", &pb.QueuedFrame{Messages: []*pb.QueuedMessage{{Message: &pb.Message{QueueId: id[:], Priority: 1 << 15}}}}, "priority"},
		{"notify", &pb.QueuedFrame{Messages: []*pb.QueuedMessage{{Message: message, Recipients: []*pb.Recipient{{Notify: 256}}}}}, "notify"},
		{"tries", &pb.QueuedFrame{Messages: []*pb.QueuedMessage{{Message: message, Recipients: []*pb.Recipient{{Tries: -32769}}}}}, "tries"},
		{"route out of range", &pb.ReadyFrame{Requests: []*pb.DeliveryRequest{{Message: message}}}, "route 0 of 0"},
		{"port", &pb.ReadyFrame{Routes: []*pb.Route{{Hosts: []*pb.Host{{Port: 65536}}}}}, "port"},
		{"preference", &pb.ReadyFrame{Routes: []*pb.Route{{Hosts: []*pb.Host{{Preference: 65536}}}}}, "preference"},
		{"address", &pb.ReadyFrame{Routes: []*pb.Route{{Hosts: []*pb.Host{{Addresses: [][]byte{{1, 2, 3}}}}}}}, "address"},
		{"no site", ready(&pb.Route{Hosts: someHost}), "no site"},
		{"no hosts", ready(&pb.Route{Site: "s"}), "no hosts"},
		{"host without address", ready(&pb.Route{Site: "s", Hosts: []*pb.Host{{Name: "x", Port: 25}}}), "no address"},
		{"empty address", ready(&pb.Route{Site: "s", Hosts: []*pb.Host{{Name: "x", Port: 25, Addresses: [][]byte{{}}}}}), "empty address"},
		{"port 0", ready(&pb.Route{Site: "s", Hosts: []*pb.Host{{Name: "x", Addresses: [][]byte{{192, 0, 2, 1}}}}}), "port 0"},
		{"host without name", ready(&pb.Route{Site: "s", Hosts: []*pb.Host{{Port: 25, Addresses: [][]byte{{192, 0, 2, 1}}}}}), "no name"},
		{"host with a control", ready(&pb.Route{Site: "s", Hosts: []*pb.Host{{Name: "x\r\n", Port: 25, Addresses: [][]byte{{192, 0, 2, 1}}}}}), "no name"},
		{"very long site", ready(&pb.Route{Site: strings.Repeat("a", 200_000), Hosts: someHost}), "200000 octets"},
		{"more hosts than there are", ready(&pb.Route{Site: "s", Hosts: slices.Repeat(someHost, 257)}), "257 hosts"},
		{"more addresses than there are", ready(&pb.Route{Site: "s", Hosts: []*pb.Host{{Name: "x", Port: 25, Addresses: slices.Repeat([][]byte{{192, 0, 2, 1}}, 65)}}}), "65 addresses"},
		{"a command in the reverse-path", &pb.QueuedFrame{Messages: []*pb.QueuedMessage{{Message: &pb.Message{QueueId: id[:], Envelope: &pb.Envelope{ReversePath: "a\r\nRCPT TO:<x@y>"}}}}}, "reverse-path"},
		{"a command in a forward-path", &pb.QueuedFrame{Messages: []*pb.QueuedMessage{{Message: message, Recipients: []*pb.Recipient{{RecipientNo: 1, ForwardPath: "a@b\nDATA"}}}}}, "forward-path"},
		{"size below zero", &pb.QueuedFrame{Messages: []*pb.QueuedMessage{{Message: &pb.Message{QueueId: id[:], SizeBytes: -1}}}}, "size"},
		{"attempt below zero", &pb.QueuedFrame{Messages: []*pb.QueuedMessage{{Message: message, Recipients: []*pb.Recipient{{RecipientNo: 1, ForwardPath: "a@b", Attempt: -1}}}}}, "attempt -1"},
		{"failed id", &pb.FailedFrame{QueueIds: [][]byte{{1}}}, "1 octets"},
	} {
		t.Run(c.name, func(t *testing.T) {
			frame, err := proto.Marshal(c.frame)
			if err != nil {
				t.Fatal(err)
			}
			switch c.frame.(type) {
			case *pb.QueuedFrame:
				_, err = decodeQueued(nil, frame)
			case *pb.ReadyFrame:
				_, err = decodeReady(nil, frame)
			case *pb.FailedFrame:
				_, err = decodeFailed(nil, frame)
			}
			if err == nil || !strings.Contains(err.Error(), c.want) {
				t.Errorf("error %v, want one with %q", err, c.want)
			}
		})
	}
}

// What is wrong in a frame does not take what is right with it.
func TestDecodeLeavesOut(t *testing.T) {
	good := &mail.DeliveryRequest{Message: fullMessage(), Route: fullRoute(), Recipients: []mail.Pending{fullPending(1)}}
	bad := *good
	bad.Route = &mail.Route{Site: "nowhere"}
	frame := collect(t, fillReady([]*mail.DeliveryRequest{&bad, good, &bad}))[0]
	got, err := decodeReady(nil, frame)
	if !errors.Is(err, undecodable) || len(got) != 1 || !reflect.DeepEqual(got[0], good) {
		t.Errorf("%d requests, %v, want the good one and an error", len(got), err)
	}
}

// What decodes must encode to something that decodes to the same; what does
// not must not panic.
func FuzzDecode(f *testing.F) {
	request := &mail.DeliveryRequest{Message: fullMessage(), Route: fullRoute(), Recipients: []mail.Pending{fullPending(1), fullPending(2)}}
	f.Add(collect(f, fillReady([]*mail.DeliveryRequest{request}))[0])
	f.Add(collect(f, fillQueued([]mail.QueuedMessage{{Message: request.Message, Recipients: request.Recipients}}))[0])
	id := mail.NewQueueID()
	f.Add(append([]byte{10, 16}, id[:]...))
	f.Add(collect(f, fillWays([]Way{{Domain: "example.org", Worker: 7, Route: fullRoute(), Valid: time.Second}}))[0])
	f.Fuzz(func(t *testing.T, frame []byte) {
		if ids, err := decodeFailed(nil, frame); err == nil {
			for _, id := range ids {
				if id.IsZero() {
					t.Error("zero queue id")
				}
			}
		}
		if ways, err := decodeWays(frame); err == nil {
			var again []Way
			for _, frame := range collect(t, fillWays(ways)) {
				more, err := decodeWays(frame)
				if err != nil {
					t.Fatal(err)
				}
				again = append(again, more...)
			}
			if len(again) != len(ways) {
				t.Errorf("%d ways, want %d", len(again), len(ways))
			}
		}
		if messages, err := decodeQueued(nil, frame); err == nil {
			var again []mail.QueuedMessage
			for _, frame := range collect(t, fillQueued(messages)) {
				if again, err = decodeQueued(again, frame); err != nil {
					t.Fatal(err)
				}
			}
			if !reflect.DeepEqual(again, messages) {
				t.Errorf("got  %+v\nwant %+v", again, messages)
			}
		}
		if requests, err := decodeReady(nil, frame); err == nil {
			var again []*mail.DeliveryRequest
			for _, frame := range collect(t, fillReady(requests)) {
				if again, err = decodeReady(again, frame); err != nil {
					t.Fatal(err)
				}
			}
			if !reflect.DeepEqual(again, requests) {
				t.Errorf("got  %+v\nwant %+v", again, requests)
			}
		}
	})
}
