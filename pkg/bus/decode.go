package bus

import (
	"errors"
	"fmt"
	"net/netip"
	"time"

	"google.golang.org/protobuf/proto"

	"github.com/postrider/postrider/pkg/mail"
	pb "github.com/postrider/postrider/proto/postrider/v1"
)

// decodeQueued appends the messages of the frame to dst. An error says that
// there are some that it left out.
func decodeQueued(dst []mail.QueuedMessage, frame []byte) ([]mail.QueuedMessage, error) {
	var in pb.QueuedFrame
	if err := proto.Unmarshal(frame, &in); err != nil {
		return dst, fmt.Errorf("%w: queued frame: %w", undecodable, err)
	}
	var wrong error
	for i, q := range in.GetMessages() {
		m, errMessage := decodeMessage(q.GetMessage())
		recipients, errRecipients := decodeRecipients(q.GetRecipients())
		if err := errors.Join(errMessage, errRecipients); err != nil {
			wrong = fmt.Errorf("%w: queued frame: message %d: %w", undecodable, i, err)
			continue
		}
		dst = append(dst, mail.QueuedMessage{Message: m, Recipients: recipients})
	}
	return dst, wrong
}

// decodeReady appends the requests of the frame to dst. Requests of one frame
// share their routes. An error says that there are some that it left out.
func decodeReady(dst []*mail.DeliveryRequest, frame []byte) ([]*mail.DeliveryRequest, error) {
	var in pb.ReadyFrame
	if err := proto.Unmarshal(frame, &in); err != nil {
		return dst, fmt.Errorf("%w: ready frame: %w", undecodable, err)
	}
	var wrong error
	routes := make([]*mail.Route, len(in.GetRoutes()))
	for i, r := range in.GetRoutes() {
		route, err := decodeRoute(r)
		if err != nil {
			wrong = fmt.Errorf("%w: ready frame: route %d: %w", undecodable, i, err)
			continue
		}
		routes[i] = route
	}
	for i, r := range in.GetRequests() {
		if int64(r.GetRoute()) >= int64(len(routes)) {
			wrong = fmt.Errorf("%w: ready frame: request %d: route %d of %d", undecodable, i, r.GetRoute(), len(routes))
			continue
		}
		route := routes[r.GetRoute()]
		if route == nil {
			continue // said above
		}
		m, errMessage := decodeMessage(r.GetMessage())
		recipients, errRecipients := decodeRecipients(r.GetRecipients())
		if err := errors.Join(errMessage, errRecipients); err != nil {
			wrong = fmt.Errorf("%w: ready frame: request %d: %w", undecodable, i, err)
			continue
		}
		dst = append(dst, &mail.DeliveryRequest{Message: m, Route: route, Recipients: recipients})
	}
	return dst, wrong
}

// decodeFailed appends the queue ids of the frame to dst.
func decodeFailed(dst []mail.QueueID, frame []byte) ([]mail.QueueID, error) {
	var in pb.FailedFrame
	if err := proto.Unmarshal(frame, &in); err != nil {
		return dst, fmt.Errorf("%w: failed frame: %w", undecodable, err)
	}
	out := dst
	for _, b := range in.GetQueueIds() {
		id, err := decodeQueueID(b)
		if err != nil {
			return dst, fmt.Errorf("%w: failed frame: %w", undecodable, err)
		}
		out = append(out, id)
	}
	return out, nil
}

func decodeQueueID(b []byte) (mail.QueueID, error) {
	var id mail.QueueID
	if len(b) != len(id) {
		return id, fmt.Errorf("queue id of %d octets, want %d", len(b), len(id))
	}
	copy(id[:], b)
	if id.IsZero() {
		return id, errors.New("queue id is zero")
	}
	return id, nil
}

func decodeMessage(m *pb.Message) (mail.Message, error) {
	id, err := decodeQueueID(m.GetQueueId())
	if err != nil {
		return mail.Message{}, err
	}
	priority, err := narrow[int16]("priority", int64(m.GetPriority()))
	e := m.GetEnvelope()
	out := mail.Message{
		ID: id,
		Envelope: mail.Envelope{
			ReversePath: mail.ReversePath(e.GetReversePath()),
			Body:        mail.BodyType(e.GetBody()),
			SMTPUTF8:    e.GetSmtputf8(),
			Ret:         mail.Ret(e.GetRet()),
			EnvID:       e.GetEnvId(),
			RequireTLS:  e.GetRequireTls(),
			DeliverBy:   decodeDeliverBy(e.GetDeliverBy()),
		},
		Tenant:      m.GetTenant(),
		Campaign:    m.GetCampaign(),
		TLSOptional: m.GetTlsOptional(),
		Priority:    priority,
		SizeBytes:   m.GetSizeBytes(),
		AcceptedAt:  moment(m.GetAcceptedAtUs()),
		Traceparent: m.GetTraceparent(),
	}
	return out, errors.Join(err, checkMessage(&out))
}

func decodeDeliverBy(by *pb.DeliverBy) mail.DeliverBy {
	if by == nil {
		return mail.DeliverBy{}
	}
	return mail.DeliverBy{At: moment(by.GetAtUs()), Return: by.GetReturn(), Trace: by.GetTrace()}
}

func decodeRecipients(in []*pb.Recipient) ([]mail.Pending, error) {
	out := make([]mail.Pending, len(in))
	for i, r := range in {
		notify, errNotify := narrow[uint8]("notify", int64(r.GetNotify()))
		tries, errTries := narrow[int16]("tries", int64(r.GetTries()))
		if err := errors.Join(errNotify, errTries); err != nil {
			return nil, fmt.Errorf("recipient %d: %w", r.GetRecipientNo(), err)
		}
		out[i] = mail.Pending{
			Recipient: mail.Recipient{
				No:          r.GetRecipientNo(),
				ForwardPath: mail.ForwardPath(r.GetForwardPath()),
				Domain:      mail.Domain(r.GetDomain()),
				Notify:      mail.Notify(notify),
				ORCPT:       r.GetOrcpt(),
				ExpiresAt:   moment(r.GetExpiresAtUs()),
			},
			Attempt: r.GetAttempt(),
			Tries:   tries,
		}
		if err := checkRecipient(&out[i]); err != nil {
			return nil, fmt.Errorf("recipient %d: %w", r.GetRecipientNo(), err)
		}
	}
	return out, nil
}

func decodeRoute(r *pb.Route) (*mail.Route, error) {
	route := &mail.Route{
		Site:      mail.Site(r.GetSite()),
		Hosts:     make([]mail.Host, len(r.GetHosts())),
		TLS:       mail.TLSLevel(r.GetTls()),
		SmartHost: r.GetSmartHost(),
		ExpiresAt: moment(r.GetExpiresAtUs()),

		Rule:        r.GetRule(),
		Pool:        r.GetPool(),
		Credential:  r.GetCredential(),
		LMTP:        r.GetLmtp(),
		ImplicitTLS: r.GetImplicitTls(),

		STS:      mail.STS(r.GetSts()),
		SecureMX: r.GetSecureMx(),
	}
	if t := r.GetTlsReport(); t != nil {
		route.Report = &mail.TLSReport{Domain: mail.Domain(t.GetDomain()), RUA: t.GetRua(), STSPolicy: t.GetStsPolicy(), Fault: t.GetFault()}
	}
	for i, h := range r.GetHosts() {
		preference, errPreference := narrow[uint16]("preference", int64(h.GetPreference()))
		port, errPort := narrow[uint16]("port", int64(h.GetPort()))
		if err := errors.Join(errPreference, errPort); err != nil {
			return nil, fmt.Errorf("host %q: %w", h.GetName(), err)
		}
		addresses := make([]netip.Addr, len(h.GetAddresses()))
		for j, b := range h.GetAddresses() {
			if err := addresses[j].UnmarshalBinary(b); err != nil {
				return nil, fmt.Errorf("host %q: address %d: %w", h.GetName(), j, err)
			}
		}
		records, err := decodeTLSA(h.GetTlsa())
		if err != nil {
			return nil, fmt.Errorf("host %q: %w", h.GetName(), err)
		}
		route.Hosts[i] = mail.Host{
			Name: h.GetName(), Preference: preference, Port: port, Addresses: addresses,
			DANE: mail.DANE(h.GetDane()), TLSA: records, Names: h.GetNames(), OutsideSTS: h.GetOutsideSts(),
		}
	}
	return route, checkRoute(route)
}

func decodeTLSA(in [][]byte) ([]mail.TLSA, error) {
	var out []mail.TLSA
	for _, b := range in {
		if len(b) < 4 {
			return nil, fmt.Errorf("TLSA record of %d octets", len(b))
		}
		out = append(out, mail.TLSA{Usage: b[0], Selector: b[1], Matching: b[2], Data: b[3:]})
	}
	return out, nil
}

// narrow converts to a smaller integer, or says that the value of the field
// does not fit.
func narrow[T int16 | uint8 | uint16](field string, v int64) (T, error) {
	n := T(v)
	if int64(n) != v {
		return 0, fmt.Errorf("%s %d is out of range", field, v)
	}
	return n, nil
}

// moment is the reverse of microseconds, in UTC.
func moment(us int64) time.Time {
	if us == 0 {
		return time.Time{}
	}
	return time.UnixMicro(us).UTC()
}
