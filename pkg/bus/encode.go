package bus

import (
	"slices"
	"sync"
	"time"

	"google.golang.org/protobuf/encoding/protowire"
	"google.golang.org/protobuf/proto"

	"github.com/postrider/postrider/pkg/mail"
	pb "github.com/postrider/postrider/proto/postrider/v1"
)

// maxFrame bounds a frame in bytes, without its seal. Only a single recipient
// that is bigger by itself makes a bigger frame.
const maxFrame = 64 << 10

// The field numbers of the frames (frame.proto). A framer writes the items of
// a frame one by one: repeated fields may be written apart.
const (
	fieldMessages  protowire.Number = 1 // QueuedFrame.messages
	fieldRoutes    protowire.Number = 1 // ReadyFrame.routes
	fieldRequests  protowire.Number = 2 // ReadyFrame.requests
	fieldQueueIDs  protowire.Number = 1 // FailedFrame.queue_ids
	fieldWays      protowire.Number = 1 // WaysFrame.ways
	queueIDOnWire                   = 1 + 1 + len(mail.QueueID{})
	frameRoomStart                  = 8 << 10
)

// framer encodes batches into frames and hands each full frame to send, which
// may append to it and must not keep it. Its scratch structs are reused: publishing a batch makes
// next to no garbage.
type framer struct {
	send func(frame []byte) error

	frame  []byte
	routes map[*mail.Route]uint32 // index in this frame
	values map[string]uint32      // encoded route -> index in this frame

	queued  pb.QueuedMessage
	request pb.DeliveryRequest
	message pb.Message
	rcpts   []*pb.Recipient
	route   []byte
}

var framers = sync.Pool{New: func() any {
	return &framer{
		frame:  make([]byte, 0, frameRoomStart),
		routes: map[*mail.Route]uint32{},
		values: map[string]uint32{},
	}
}}

// frames runs fill with a framer and sends what is left at its end.
func frames(send func([]byte) error, fill func(*framer) error) error {
	f := framers.Get().(*framer)
	f.send = send
	defer func() {
		f.reset()
		f.send = nil
		framers.Put(f)
	}()
	if err := fill(f); err != nil {
		return err
	}
	return f.flush()
}

func (f *framer) reset() {
	f.frame = f.frame[:0]
	clear(f.routes)
	clear(f.values)
}

func (f *framer) flush() error {
	if len(f.frame) == 0 {
		return nil
	}
	f.frame = slices.Grow(f.frame, sealSize)
	err := f.send(f.frame)
	f.reset()
	return err
}

// addQueued puts the message with the given recipients into the frame, in
// several frames if they do not fit into one.
func (f *framer) addQueued(m *mail.QueuedMessage, recipients []mail.Pending) error {
	f.queued.Message = f.encodeMessage(&m.Message)
	f.queued.Recipients = f.encodeRecipients(recipients)
	size := itemSize(&f.queued)
	switch {
	case len(f.frame)+size <= maxFrame:
	case len(f.frame) > 0:
		if err := f.flush(); err != nil {
			return err
		}
		return f.addQueued(m, recipients)
	case len(recipients) > 1:
		half := len(recipients) / 2
		if err := f.addQueued(m, recipients[:half]); err != nil {
			return err
		}
		return f.addQueued(m, recipients[half:])
	}
	return f.appendItem(fieldMessages, &f.queued)
}

// addRequest is addQueued for a delivery request and its route.
func (f *framer) addRequest(r *mail.DeliveryRequest, recipients []mail.Pending) error {
	index, known := f.routes[r.Route]
	if !known {
		var err error
		f.route, err = proto.MarshalOptions{}.MarshalAppend(f.route[:0], encodeRoute(r.Route))
		if err != nil {
			return err
		}
		index, known = f.values[string(f.route)]
	}
	size := 0
	if !known {
		index = uint32(len(f.values))
		size = protowire.SizeTag(fieldRoutes) + protowire.SizeBytes(len(f.route))
	}
	f.request.Message = f.encodeMessage(&r.Message)
	f.request.Recipients = f.encodeRecipients(recipients)
	f.request.Route = index
	size += itemSize(&f.request)
	switch {
	case len(f.frame)+size <= maxFrame:
	case len(f.frame) > 0:
		if err := f.flush(); err != nil {
			return err
		}
		return f.addRequest(r, recipients)
	case len(recipients) > 1:
		half := len(recipients) / 2
		if err := f.addRequest(r, recipients[:half]); err != nil {
			return err
		}
		return f.addRequest(r, recipients[half:])
	}
	if !known {
		f.values[string(f.route)] = index
		f.frame = protowire.AppendTag(f.frame, fieldRoutes, protowire.BytesType)
		f.frame = protowire.AppendBytes(f.frame, f.route)
	}
	f.routes[r.Route] = index
	return f.appendItem(fieldRequests, &f.request)
}

func (f *framer) addFailed(id mail.QueueID) error {
	if len(f.frame)+queueIDOnWire > maxFrame {
		if err := f.flush(); err != nil {
			return err
		}
	}
	f.frame = protowire.AppendTag(f.frame, fieldQueueIDs, protowire.BytesType)
	f.frame = protowire.AppendBytes(f.frame, id[:])
	return nil
}

// itemSize is the size of the item with its tag and length. It leaves the
// sizes of all parts cached for appendItem.
func itemSize(item proto.Message) int {
	return 1 + protowire.SizeBytes(proto.Size(item))
}

func (f *framer) appendItem(field protowire.Number, item proto.Message) error {
	sized := proto.MarshalOptions{UseCachedSize: true}
	f.frame = protowire.AppendTag(f.frame, field, protowire.BytesType)
	f.frame = protowire.AppendVarint(f.frame, uint64(sized.Size(item)))
	var err error
	f.frame, err = sized.MarshalAppend(f.frame, item)
	return err
}

func (f *framer) encodeMessage(m *mail.Message) *pb.Message {
	if f.message.Envelope == nil {
		f.message.Envelope = new(pb.Envelope)
	}
	f.message.QueueId = m.ID[:]
	f.message.Tenant = m.Tenant
	f.message.Campaign = m.Campaign
	f.message.TlsOptional = m.TLSOptional
	f.message.Priority = int32(m.Priority)
	f.message.SizeBytes = m.SizeBytes
	f.message.AcceptedAtUs = microseconds(m.AcceptedAt)
	f.message.Traceparent = m.Traceparent
	e := f.message.Envelope
	e.ReversePath = string(m.Envelope.ReversePath)
	e.Body = string(m.Envelope.Body)
	e.Smtputf8 = m.Envelope.SMTPUTF8
	e.Ret = string(m.Envelope.Ret)
	e.EnvId = m.Envelope.EnvID
	e.RequireTls = m.Envelope.RequireTLS
	e.DeliverBy = encodeDeliverBy(m.Envelope.DeliverBy)
	return &f.message
}

func encodeDeliverBy(by mail.DeliverBy) *pb.DeliverBy {
	if by.At.IsZero() {
		return nil
	}
	return &pb.DeliverBy{AtUs: microseconds(by.At), Return: by.Return, Trace: by.Trace}
}

func (f *framer) encodeRecipients(pending []mail.Pending) []*pb.Recipient {
	for len(f.rcpts) < len(pending) {
		f.rcpts = append(f.rcpts, new(pb.Recipient))
	}
	for i := range pending {
		p, r := &pending[i], f.rcpts[i]
		r.RecipientNo = p.No
		r.ForwardPath = string(p.ForwardPath)
		r.Domain = string(p.Domain)
		r.Notify = uint32(p.Notify)
		r.Orcpt = p.ORCPT
		r.ExpiresAtUs = microseconds(p.ExpiresAt)
		r.Attempt = p.Attempt
		r.Tries = int32(p.Tries)
	}
	return f.rcpts[:len(pending)]
}

func encodeRoute(r *mail.Route) *pb.Route {
	route := &pb.Route{
		Site:        string(r.Site),
		Hosts:       make([]*pb.Host, len(r.Hosts)),
		Tls:         string(r.TLS),
		SmartHost:   r.SmartHost,
		ExpiresAtUs: microseconds(r.ExpiresAt),
		Rule:        r.Rule,
		Pool:        r.Pool,
		Credential:  r.Credential,
		Lmtp:        r.LMTP,
		ImplicitTls: r.ImplicitTLS,
		Sts:         string(r.STS),
		SecureMx:    r.SecureMX,
	}
	if t := r.Report; t != nil {
		route.TlsReport = &pb.TLSReport{Domain: string(t.Domain), Rua: t.RUA, StsPolicy: t.STSPolicy, Fault: t.Fault}
	}
	for i, h := range r.Hosts {
		host := &pb.Host{
			Name:       h.Name,
			Preference: uint32(h.Preference),
			Port:       uint32(h.Port),
			Addresses:  make([][]byte, len(h.Addresses)),
			Dane:       string(h.DANE),
			Names:      h.Names,
			OutsideSts: h.OutsideSTS,
		}
		for _, t := range h.TLSA {
			host.Tlsa = append(host.Tlsa, append([]byte{t.Usage, t.Selector, t.Matching}, t.Data...))
		}
		for j, a := range h.Addresses {
			host.Addresses[j], _ = a.MarshalBinary() // never fails
		}
		route.Hosts[i] = host
	}
	return route
}

// microseconds is the time as it travels: Postgres keeps no finer ones. The
// zero time is 0.
func microseconds(t time.Time) int64 {
	if t.IsZero() {
		return 0
	}
	return t.UnixMicro()
}
