// Package bustest starts real NATS servers with JetStream for tests, inside
// the test process and on loopback, and stops, restarts and wipes them.
package bustest

import (
	"bytes"
	"context"
	"os"
	"testing"
	"time"

	"github.com/nats-io/nats-server/v2/server"

	"github.com/postrider/postrider/pkg/mail"
)

// Server is a NATS server with JetStream. Its port stays the same over
// restarts. Its methods are for the test's goroutine.
type Server struct {
	tb      testing.TB
	options server.Options
	running *server.Server
}

// Start starts a server on a free port of 127.0.0.1 and stops it at the end
// of the test.
func Start(tb testing.TB) *Server {
	tb.Helper()
	return start(tb, func(*server.Options) {})
}

// StartWithPassword is Start for a server that wants a password of the user
// "postrider". Its URL has none.
func StartWithPassword(tb testing.TB, password string) *Server {
	tb.Helper()
	return start(tb, func(o *server.Options) { o.Username, o.Password = "postrider", password })
}

// StartWithoutJetStream is Start for a server that keeps no streams.
func StartWithoutJetStream(tb testing.TB) *Server {
	tb.Helper()
	return start(tb, func(o *server.Options) { o.JetStream = false })
}

func start(tb testing.TB, change func(*server.Options)) *Server {
	tb.Helper()
	s := &Server{tb: tb, options: server.Options{
		Host:      "127.0.0.1",
		Port:      server.RANDOM_PORT,
		JetStream: true,
		StoreDir:  tb.TempDir(),
		NoLog:     true,
		NoSigs:    true,
	}}
	change(&s.options)
	s.Resume()
	tb.Cleanup(s.Stop)
	return s
}

// URL is where clients connect to, also while the server is stopped.
func (s *Server) URL() string { return s.running.ClientURL() }

// Stop ends the server as a crash would: clients are cut off. Stopping a
// stopped server does nothing.
func (s *Server) Stop() {
	s.running.Shutdown()
	s.running.WaitForShutdown()
}

// Resume starts a stopped server on its old port with the data that it has on
// disk. Streams in memory are gone.
func (s *Server) Resume() {
	s.tb.Helper()
	options := s.options // the server writes into its options
	running, err := server.NewServer(&options)
	if err != nil {
		s.tb.Fatalf("bustest: %v", err)
	}
	running.Start()
	s.running = running
	if !running.ReadyForConnections(10 * time.Second) {
		s.tb.Fatal("bustest: the server takes no connections within 10 s")
	}
	s.options.Port = options.Port
}

// Restart stops the server and starts it again, without any data if wipe is
// set.
func (s *Server) Restart(wipe bool) {
	s.tb.Helper()
	s.Stop()
	if wipe {
		if err := os.RemoveAll(s.options.StoreDir); err != nil {
			s.tb.Fatalf("bustest: %v", err)
		}
	}
	s.Resume()
}

// Keys are keys of the bus that stay as they are, for tests without Postgres.
type Keys []mail.BusKey

// OneKey is what most tests need.
var OneKey = Keys{{ID: 1, Secret: bytes.Repeat([]byte{1}, 32)}}

// BusKeys returns the keys.
func (k Keys) BusKeys(context.Context) (mail.BusKeys, error) {
	return mail.BusKeys{Keys: k, At: time.Now()}, nil
}
