package ingress_test

import (
	"context"
	"crypto/tls"
	"encoding/json"
	"io"
	"net"
	"net/http"
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/postrider/postrider/pkg/auth"
	"github.com/postrider/postrider/pkg/mail"
	"github.com/postrider/postrider/pkg/store"
	"github.com/postrider/postrider/pkg/storetest"
	"github.com/postrider/postrider/services/ingress"
)

// overTLS submits a message by HTTPS, behind what a load balancer sends.
func overTLS(t *testing.T, address, key, header string) (status int) {
	t.Helper()
	client := &http.Client{Transport: &http.Transport{
		DialContext: func(ctx context.Context, network, address string) (net.Conn, error) {
			var d net.Dialer
			conn, err := d.DialContext(ctx, network, address)
			if err == nil {
				_, err = io.WriteString(conn, header)
			}
			return conn, err
		},
		TLSClientConfig: &tls.Config{InsecureSkipVerify: true}, //nolint:gosec // it is self-signed
	}}
	defer client.CloseIdleConnections()
	request, err := http.NewRequestWithContext(t.Context(), http.MethodPost, "https://"+address+"/v1/messages?to=b@example.org",
		strings.NewReader("From: a@example.com\r\n\r\nhello\r\n"))
	if err != nil {
		t.Fatal(err)
	}
	request.Header.Set("Content-Type", "message/rfc822")
	request.Header.Set("Authorization", "Bearer "+key)
	response, err := client.Do(request)
	if err != nil {
		return 0
	}
	defer response.Body.Close()
	return response.StatusCode
}

// A client that comes through a load balancer is who the balancer says, with
// TLS in between too.
func TestHTTPByProxy(t *testing.T) {
	db, err := store.Open(t.Context(), store.Config{URL: storetest.New(t), MaxConns: 4})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(db.Close)
	if err := db.CreateTenant(t.Context(), store.Tenant{Name: "acme"}); err != nil {
		t.Fatal(err)
	}
	key, sum := auth.NewKey()
	if err := db.CreateCredential(t.Context(), store.Credential{Name: "app", Tenant: "acme", Kind: store.APIKeyCredential, KeySHA256: sum[:],
		ReversePaths: []string{"example.com"}, Networks: []netip.Prefix{netip.MustParsePrefix("192.0.2.7/32")}}); err != nil {
		t.Fatal(err)
	}
	cfg := testConfig()
	cfg.HTTP.ListenTLS, cfg.TLS.SelfSigned = "127.0.0.1:0", true
	cfg.HTTP.MaxBodyBytes, cfg.HTTP.MemoryBytes = 1<<20, 8<<20
	cfg.HTTP.MaxConnections, cfg.HTTP.ReadTimeout = 10, 10*time.Second
	cfg.HTTP.ProxyNetworks = []netip.Prefix{netip.MustParsePrefix("127.0.0.0/8")}
	listener, err := ingress.Listen(t.Context(), cfg)
	if err != nil {
		t.Fatal(err)
	}
	ctx, stop := context.WithCancel(t.Context())
	ended := make(chan error, 1)
	go func() {
		ended <- ingress.Run(ctx, cfg, ingress.Deps{Listener: listener, Store: db, Bus: deafBus{}})
	}()
	t.Cleanup(func() {
		stop()
		if err := <-ended; err != nil {
			t.Errorf("Run = %v", err)
		}
	})
	for header, want := range map[string]int{
		"PROXY TCP4 192.0.2.7 192.0.2.8 1234 443\r\n": http.StatusAccepted,
		"PROXY TCP4 192.0.2.6 192.0.2.8 1234 443\r\n": http.StatusUnauthorized, // a network that the key is not for
		"PROXY UNKNOWN\r\n":                           http.StatusUnauthorized,
		"":                                            0, // a TLS greeting is no header
		"nonsense\r\n":                                0,
	} {
		if got := overTLS(t, listener.HTTPSAddr().String(), key, header); got != want {
			t.Errorf("%q: %d, want %d", header, got, want)
		}
	}
}

// HTTP and SMTP are served by one process, until it drains.
func TestHTTP(t *testing.T) {
	db, err := store.Open(t.Context(), store.Config{URL: storetest.New(t), MaxConns: 4})
	if err != nil {
		t.Fatal(err)
	}
	defer db.Close()
	if err := db.CreateTenant(t.Context(), store.Tenant{Name: "acme"}); err != nil {
		t.Fatal(err)
	}
	key, sum := auth.NewKey()
	if err := db.CreateCredential(t.Context(), store.Credential{Name: "app", Tenant: "acme", Kind: store.APIKeyCredential, KeySHA256: sum[:], ReversePaths: []string{"example.com"}, Networks: []netip.Prefix{netip.MustParsePrefix("127.0.0.0/8")}}); err != nil {
		t.Fatal(err)
	}
	cfg := testConfig()
	cfg.HTTP.Listen, cfg.HTTP.ListenTLS, cfg.TLS.SelfSigned = "127.0.0.1:0", "127.0.0.1:0", true
	cfg.HTTP.MaxBodyBytes, cfg.HTTP.MemoryBytes = 1<<20, 8<<20
	cfg.HTTP.MaxConnections, cfg.HTTP.ReadTimeout = 10, 10*time.Second
	listener, err := ingress.Listen(t.Context(), cfg)
	if err != nil {
		t.Fatal(err)
	}
	ctx, stop := context.WithCancel(t.Context())
	ended := make(chan error, 1)
	go func() {
		ended <- ingress.Run(ctx, cfg, ingress.Deps{Listener: listener, Store: db, Bus: deafBus{}})
	}()
	request, err := http.NewRequestWithContext(t.Context(), http.MethodPost, "http://"+listener.HTTPAddr().String()+"/v1/messages",
		strings.NewReader(`{"from": {"address": "a@example.com"}, "to": [{"address": "b@example.org"}], "text": "hello"}`))
	if err != nil {
		t.Fatal(err)
	}
	request.Header.Set("Content-Type", "application/json")
	request.Header.Set("Authorization", "Bearer "+key)
	response, err := http.DefaultClient.Do(request)
	if err != nil {
		t.Fatal(err)
	}
	defer response.Body.Close()
	var receipt struct {
		Messages []struct {
			ID string `json:"id"`
		} `json:"messages"`
	}
	if err := json.NewDecoder(response.Body).Decode(&receipt); err != nil || response.StatusCode != http.StatusAccepted || len(receipt.Messages) != 1 {
		t.Fatalf("%s, %+v, %v", response.Status, receipt, err)
	}
	id, err := mail.ParseQueueID(receipt.Messages[0].ID)
	if err != nil {
		t.Fatal(err)
	}
	content, err := db.OpenContent(t.Context(), id)
	if err != nil {
		t.Fatal(err)
	}
	if err := content.Close(); err != nil {
		t.Error(err)
	}
	if got := overTLS(t, listener.HTTPSAddr().String(), key, ""); got != http.StatusAccepted {
		t.Errorf("HTTPS: %d", got)
	}
	s, err := (&world{address: listener.Addr().String()}).session(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	defer s.conn.Close()
	if reply, err := s.submit(body(0, 0, 1000)); err != nil || reply.Code != 250 {
		t.Errorf("%s, %v", reply, err)
	}
	stop()
	if err := <-ended; err != nil {
		t.Errorf("Run = %v", err)
	}
}
