package httpd

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"net/netip"
	"strings"
	"time"

	"go.opentelemetry.io/otel"
	"go.opentelemetry.io/otel/trace"
	"golang.org/x/sync/errgroup"

	"github.com/postrider/postrider/pkg/telemetry"
	"github.com/postrider/postrider/services/ingress/internal/access"
	"github.com/postrider/postrider/services/ingress/internal/commit"
	"github.com/postrider/postrider/services/ingress/internal/spool"
)

const (
	headerTimeout  = 10 * time.Second
	idleTimeout    = time.Minute
	writeTimeout   = 10 * time.Second
	maxHeaderBytes = 256 << 10 // a thousand recipients in the query
)

// keeper knows who may send what. *access.Keeper is one.
type keeper interface {
	APIKey(ctx context.Context, client netip.Addr, key string) (access.Identity, error)
	Take(ctx context.Context, id access.Identity, recipients int, bytes int64) error
	GiveBack(id access.Identity, recipients int, bytes int64)
}

// Server takes messages by HTTP.
type Server struct {
	cfg       Config
	committer *commit.Committer
	keeper    keeper
	doc       *document
	budget    budget
	spool     *spool.Spool
	metrics   *metrics
	tracer    trace.Tracer
	store     telemetry.Outage // for the log

	writeTimeout time.Duration
}

// New returns a server whose messages go to the committer. Large ones that are
// still coming in wait in the spool.
func New(cfg Config, committer *commit.Committer, k keeper, room *spool.Spool) (*Server, error) {
	doc, err := describe()
	if err != nil {
		return nil, err
	}
	return &Server{
		cfg:       cfg,
		committer: committer,
		keeper:    k,
		doc:       doc,
		budget:    newBudget(cfg.MemoryBytes),
		spool:     room,
		metrics:   newMetrics(),
		tracer:    otel.Tracer("github.com/postrider/postrider/services/ingress"),

		writeTimeout: writeTimeout,
	}, nil
}

// Serve answers requests until ctx is done, finishes those under way within
// the drain timeout, and returns nil; or it returns why no connection can be
// taken any more.
func (s *Server) Serve(ctx context.Context, listeners []net.Listener) error {
	server := &http.Server{
		Handler:           counting(s.routes()),
		ConnContext:       withVisitor,
		ReadHeaderTimeout: headerTimeout,
		WriteTimeout:      s.writeTimeout, // of every answer; messages has more time to read, and sets it anew
		IdleTimeout:       idleTimeout,
		MaxHeaderBytes:    maxHeaderBytes,
		ErrorLog:          slog.NewLogLogger(slog.Default().Handler(), slog.LevelDebug),
	}
	var g errgroup.Group
	accepting, running := errgroup.WithContext(ctx)
	for _, listener := range listeners {
		accepting.Go(func() error {
			err := server.Serve(listener)
			if errors.Is(err, http.ErrServerClosed) {
				return nil
			}
			return fmt.Errorf("http: %w", err)
		})
	}
	g.Go(accepting.Wait)
	g.Go(func() error {
		<-running.Done()
		drain, cancel := context.WithTimeout(context.WithoutCancel(ctx), s.cfg.DrainTimeout)
		defer cancel()
		if err := server.Shutdown(drain); err != nil {
			slog.Warn("HTTP requests cut off at the end of the drain", "error", err)
			return server.Close()
		}
		return nil
	})
	return g.Wait()
}

func (s *Server) routes() http.Handler {
	mux := http.NewServeMux()
	mux.HandleFunc(path, s.messages)
	mux.HandleFunc("/openapi.json", func(w http.ResponseWriter, r *http.Request) {
		if r.Method != http.MethodGet && r.Method != http.MethodHead {
			notAllowed(w, "GET, HEAD")
			return
		}
		writeBody(w, http.StatusOK, "application/openapi+json", s.doc.json)
	})
	mux.HandleFunc("/", func(w http.ResponseWriter, r *http.Request) {
		refuse(http.StatusNotFound, "POST "+path+" takes messages, GET /openapi.json says how").write(w)
	})
	return mux
}

func notAllowed(w http.ResponseWriter, allow string) {
	w.Header().Set("Allow", allow)
	refuse(http.StatusMethodNotAllowed, "allowed here: "+allow).write(w)
}

// messages is POST /v1/messages.
func (s *Server) messages(w http.ResponseWriter, r *http.Request) {
	if r.Method != http.MethodPost {
		notAllowed(w, "POST")
		return
	}
	result, err := s.take(w, r)
	control := http.NewResponseController(w)
	if err := control.SetWriteDeadline(time.Now().Add(s.writeTimeout)); err != nil {
		slog.Debug("HTTP deadline not set", "error", err)
	}
	if err != nil {
		p, ours := problemOf(err)
		if ours {
			s.store.Failed("HTTP request not accepted", err)
		}
		s.metrics.answered(p.Status)
		slog.Info("HTTP request refused", "client", r.RemoteAddr, "status", p.Status, "detail", p.Detail)
		p.write(w)
		return
	}
	s.store.Worked("HTTP requests are accepted again")
	s.metrics.answered(http.StatusAccepted)
	if result.replayed {
		w.Header().Set("Idempotent-Replayed", "true")
	}
	writeBody(w, http.StatusAccepted, jsonType, result.receipt)
}

// client is the address that the connection comes from.
func client(r *http.Request) netip.Addr {
	remote, err := netip.ParseAddrPort(r.RemoteAddr)
	if err != nil {
		return netip.Addr{} // no network contains it
	}
	return remote.Addr().Unmap()
}

// authenticate finds whose API key the request has: RFC 6750 §2.1.
func (s *Server) authenticate(r *http.Request) (access.Identity, error) {
	scheme, key, _ := strings.Cut(r.Header.Get("Authorization"), " ")
	key = strings.TrimSpace(key)
	if !strings.EqualFold(scheme, "Bearer") || key == "" {
		return access.Identity{}, refuse(http.StatusUnauthorized, "no API key: send Authorization: Bearer pr_...")
	}
	return s.keeper.APIKey(r.Context(), client(r), key)
}

// budget bounds the memory of all requests together.
type budget struct {
	*spool.Budget
	limit int64
}

func newBudget(limit int64) budget { return budget{spool.NewBudget(limit), limit} }

// share returns the share of a request of a client, with nothing in it.
func (b budget) share(client netip.Addr) share {
	return share{of: b, client: client, own: b.Share(client)}
}

// errMemory tells a client to come back.
var errMemory = later(http.StatusTooManyRequests, time.Second, "too much mail at this moment")

// share is what one request holds of the budget.
type share struct {
	of     budget
	client netip.Addr
	own    spool.Share
	held   int64
}

// take takes n bytes more, or says errMemory; or that the request alone is too
// much, which is not to be tried again.
func (s *share) take(n int64) error {
	if s.held+n > s.of.limit {
		return refuse(http.StatusRequestEntityTooLarge, "the request needs more memory than the server has for requests; split it")
	}
	if !s.own.Borrow(n) {
		return errMemory
	}
	s.held += n
	return nil
}

func (s *share) release() { s.own.Close() }
