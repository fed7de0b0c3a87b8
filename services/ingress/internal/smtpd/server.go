package smtpd

import (
	"context"
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
	"github.com/postrider/postrider/services/ingress/internal/commit"
)

// acceptPause is the wait after a failed accept, such as for want of file
// descriptors.
const acceptPause = 100 * time.Millisecond

// Server is what all sessions share.
type Server struct {
	cfg       Config
	hello     mail.Reply // to EHLO
	committer *commit.Committer
	memory    memory
	streams   chan struct{} // holds a token for each large message under way
	closed    chan struct{} // closed at the end of the drain
	metrics   *metrics
	tracer    trace.Tracer

	mu       sync.Mutex // guards what follows
	sessions map[*session]struct{}
	perIP    map[netip.Addr]int
	drainAt  time.Time // zero until the drain
}

// New returns a server whose sessions hand their messages to the committer.
func New(cfg Config, committer *commit.Committer) *Server {
	s := &Server{
		cfg:       cfg,
		hello:     replyEHLO(&cfg),
		committer: committer,
		memory:    memory{limit: cfg.MemoryBytes},
		streams:   make(chan struct{}, cfg.Streams),
		closed:    make(chan struct{}),
		tracer:    otel.Tracer("github.com/postrider/postrider/services/ingress"),
		sessions:  map[*session]struct{}{},
		perIP:     map[netip.Addr]int{},
	}
	s.metrics = newMetrics(s)
	return s
}

// Serve takes connections until ctx is done, then ends all sessions: content
// that is being received is finished, within the drain timeout; every other
// session hears 421. It returns nil after that, or why no connection can be
// taken any more.
func (s *Server) Serve(ctx context.Context, listener net.Listener) error {
	defer s.metrics.unregister()
	var sessions errgroup.Group
	stop := context.AfterFunc(ctx, func() { closeListener(listener) })
	defer stop()
	err := s.accept(ctx, listener, &sessions)
	closeListener(listener)
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

func (s *Server) accept(ctx context.Context, listener net.Listener, sessions *errgroup.Group) error {
	for {
		conn, err := listener.Accept()
		switch {
		case err == nil:
			s.begin(conn, sessions)
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
func (s *Server) begin(conn net.Conn, sessions *errgroup.Group) {
	client := clientAddress(conn)
	session := newSession(s, conn, client)
	if refusal := s.enter(session); refusal.Code != 0 {
		s.metrics.refused(refusal)
		slog.Warn("connection refused", "client", client, "reply", refusal.String())
		refuse(conn, refusal)
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
func refuse(conn net.Conn, reply mail.Reply) {
	defer conn.Close()
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
	case len(s.sessions) >= s.cfg.MaxConnections:
		return replyConnections
	case s.perIP[session.client.Address] >= s.cfg.MaxConnectionsPerIP:
		return replyConnectionIP
	}
	s.sessions[session] = struct{}{}
	s.perIP[session.client.Address]++
	return mail.Reply{}
}

func (s *Server) leave(session *session) {
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.sessions, session)
	if s.perIP[session.client.Address]--; s.perIP[session.client.Address] == 0 {
		delete(s.perIP, session.client.Address)
	}
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
	close(s.closed)
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
