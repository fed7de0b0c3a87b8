package postrider

import (
	"crypto/rand"
	"errors"
	"fmt"
	"net/url"
	"time"

	"github.com/nats-io/nats-server/v2/server"
)

// natsStartTimeout bounds the start of the embedded server.
const natsStartTimeout = 10 * time.Second

// startJetStream runs a NATS server inside this process, on loopback and with
// a password of its own, and returns its URL. Streams that are kept in files
// go to dir.
func startJetStream(dir string) (*server.Server, string, error) {
	o := &server.Options{
		ServerName: "postrider-dev",
		Host:       "127.0.0.1",
		Port:       server.RANDOM_PORT,
		Username:   "postrider",
		Password:   rand.Text(),
		JetStream:  true,
		StoreDir:   dir,
		NoLog:      true,
		NoSigs:     true,
	}
	s, err := server.NewServer(o)
	if err != nil {
		return nil, "", fmt.Errorf("embedded NATS: %w", err)
	}
	s.Start()
	if !s.ReadyForConnections(natsStartTimeout) {
		s.Shutdown()
		return nil, "", errors.New("embedded NATS: not ready in time")
	}
	u := url.URL{Scheme: "nats", User: url.UserPassword(o.Username, o.Password), Host: s.Addr().String()}
	return s, u.String(), nil
}
