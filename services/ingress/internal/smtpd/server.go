package smtpd

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"log/slog"
	"net"
	"net/netip"
	"sync"
	"time"

	"go.opentelemetry.io/otel"
	"go.opentelemetry.io/otel/trace"
	"golang.org/x/sync/errgroup"

	"github.com/postrider/postrider/pkg/mail"
	"github.com/postrider/postrider/pkg/smtp"
	"github.com/postrider/postrider/pkg/telemetry"
	"github.com/postrider/postrider/services/ingress/internal/access"
	"github.com/postrider/postrider/services/ingress/internal/commit"
	"github.com/postrider/postrider/services/ingress/internal/spool"
)

// acceptPause is the wait after a failed accept, such as for want of file
// descriptors.
const acceptPause = 100 * time.Millisecond

// Door is an address at which clients are served, and the rules that hold
// there.
type Door struct {
	Listener net.Listener
	// ImplicitTLS: TLS begins with the connection (RFC 8314 §3). Otherwise
	// STARTTLS is offered, if there is a certificate.
	ImplicitTLS bool
	NoTLS       bool // STARTTLS is not offered
	NeedTLS     bool // no mail before STARTTLS
	// Submission: every client must authenticate, whatever its network (RFC
	// 6409 §4.3).
	Submission bool
	NoAuth     bool    // AUTH is not offered
	Config     *Config // limits and policy here; nil: those of the server
	open       int     // connections; guarded by the server's mutex
}

// gatekeeper knows who clients are, and what they may send. *access.Keeper is
// one.
type gatekeeper interface {
	Password(ctx context.Context, client netip.Addr, user, password string) (access.Identity, error)
	SCRAM(client netip.Addr, binding access.Binding) (*access.Exchange, error)
	MaySCRAM() bool
	Certificate(ctx context.Context, client netip.Addr, c access.Certificate) (access.Identity, error)
	Vouched(ctx context.Context, client netip.Addr, user string) (access.Identity, error)
	Renew(ctx context.Context, client netip.Addr, id access.Identity) (access.Identity, error)
	Take(ctx context.Context, id access.Identity, recipients int, bytes int64) error
	GiveBack(id access.Identity, recipients int, bytes int64)
}

// certificates are those of TLS. *certs.Holder is one.
type certificates interface {
	Server() *tls.Config
	Names(chain []*x509.Certificate) []string
}

// Deps are what sessions work with.
type Deps struct {
	Committer *commit.Committer
	Access    gatekeeper
	Spool     *spool.Spool
	TLS       certificates // nil: there is no TLS
}

// Server is what all sessions share.
type Server struct {
	cfg       Config
	committer *commit.Committer
	access    gatekeeper
	certs     certificates
	tls       *tls.Config // nil: there is no TLS
	memory    *spool.Budget
	spool     *spool.Spool
	crowd     *crowd
	mending   chan struct{}   // holds a token while a message is mended
	ctx       context.Context // of what sessions wait for; ends with the drain
	cut       context.CancelFunc
	metrics   *metrics
	tracer    trace.Tracer

	// What fails now, for the log.
	store, disk, lookups telemetry.Outage

	mu       sync.Mutex // guards what follows
	sessions map[*session]struct{}
	drainAt  time.Time // zero until the drain
}

// New returns a server whose sessions hand their messages to the committer.
func New(cfg Config, deps Deps) *Server {
	s := &Server{
		cfg:       cfg,
		committer: deps.Committer,
		access:    deps.Access,
		certs:     deps.TLS,
		memory:    spool.NewBudget(cfg.MemoryBytes),
		spool:     deps.Spool,
		crowd:     newCrowd(),
		mending:   make(chan struct{}, 1),
		tracer:    otel.Tracer("github.com/postrider/postrider/services/ingress"),
		sessions:  map[*session]struct{}{},
	}
	if deps.TLS != nil {
		s.tls = deps.TLS.Server()
	}
	s.ctx, s.cut = context.WithCancel(context.Background())
	s.metrics = newMetrics(s)
	return s
}

// Serve takes connections until ctx is done, then ends all sessions: content
// that is being received is finished, within the drain timeout; every other
// session hears 421. It returns nil after that, or why no connection can be
// taken any more at one of the doors. Then it serves at none.
func (s *Server) Serve(ctx context.Context, doors []Door) error {
	defer s.metrics.unregister()
	defer s.cut()
	var sessions errgroup.Group
	accepting, running := errgroup.WithContext(ctx)
	for i := range doors {
		door := &doors[i]
		accepting.Go(func() error {
			stop := context.AfterFunc(running, func() { closeListener(door.Listener) })
			defer stop()
			defer closeListener(door.Listener)
			return s.accept(running, door, &sessions)
		})
	}
	err := accepting.Wait()
	s.drain()
	hard := time.AfterFunc(s.cfg.DrainTimeout, s.closeAll)
	defer hard.Stop()
	return errors.Join(err, sessions.Wait())
}

func closeListener(l net.Listener) {
	if err := l.Close(); err != nil && !errors.Is(err, net.ErrClosed) {
		slog.Warn("listener not closed", "error", err)
	}
}

func (s *Server) accept(ctx context.Context, door *Door, sessions *errgroup.Group) error {
	for {
		conn, err := door.Listener.Accept()
		switch {
		case err == nil:
			s.begin(conn, door, sessions)
		case ctx.Err() != nil:
			return nil
		case errors.Is(err, net.ErrClosed):
			return err
		default:
			slog.Warn("connection not accepted", "error", err)
			select {
			case <-ctx.Done():
			case <-time.After(acceptPause):
			}
		}
	}
}

// begin starts the session of a connection, or refuses it.
func (s *Server) begin(conn net.Conn, door *Door, sessions *errgroup.Group) {
	session := newSession(s, conn, door)
	if refusal := s.enter(session); refusal.Code != 0 {
		s.metrics.refused(refusal)
		slog.Warn("connection refused", "client", session.client.Address, "reply", refusal.String())
		refuse(conn, door, refusal)
		return
	}
	sessions.Go(func() error {
		defer s.leave(session)
		session.serve()
		return nil
	})
}

// refuse tells the client and closes. One reply fits the socket's buffer, so
// nothing waits for the client.
func refuse(conn net.Conn, door *Door, reply mail.Reply) {
	defer conn.Close()
	if door.ImplicitTLS { // a handshake is more than a refusal may cost
		return
	}
	if conn.SetWriteDeadline(time.Now().Add(time.Second)) == nil {
		// A client that is gone misses nothing.
		_, _ = conn.Write(smtp.AppendReply(nil, reply))
	}
}

func clientAddress(conn net.Conn) netip.Addr {
	remote, ok := conn.RemoteAddr().(*net.TCPAddr)
	if !ok {
		return netip.Addr{}
	}
	address, _ := netip.AddrFromSlice(remote.IP) // the zero Addr may not relay
	return address.Unmap()
}

// enter counts the session in, or returns the reply that refuses it.
func (s *Server) enter(session *session) mail.Reply {
	s.mu.Lock()
	defer s.mu.Unlock()
	switch {
	case !s.drainAt.IsZero():
		return replyDraining
	case len(s.sessions) >= s.cfg.MaxConnections, session.door.open >= session.cfg.MaxConnections:
		return replyConnections
	}
	if !session.proxied() { // else we do not know the client yet
		if refusal := session.enterCrowd(); refusal.Code != 0 {
			return refusal
		}
	}
	s.sessions[session] = struct{}{}
	session.door.open++
	return mail.Reply{}
}

func (s *Server) leave(session *session) {
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.sessions, session)
	session.door.open--
}

// drain makes every session end at its next command.
func (s *Server) drain() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.drainAt = time.Now().Add(drainGrace)
	for session := range s.sessions {
		session.wire.drain(s.drainAt)
	}
}

// closeAll ends the sessions that the drain left.
func (s *Server) closeAll() {
	s.cut()
	s.mu.Lock()
	defer s.mu.Unlock()
	for session := range s.sessions {
		slog.Warn("session cut off at the end of the drain", "client", session.client.Address)
		// The session sees its reads fail and ends by itself.
		_ = session.wire.conn.Close()
	}
}

// count returns the number of sessions.
func (s *Server) count() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return len(s.sessions)
}
