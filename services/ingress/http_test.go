package ingress_test

import (
	"context"
	"encoding/json"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/postrider/postrider/pkg/auth"
	"github.com/postrider/postrider/pkg/mail"
	"github.com/postrider/postrider/pkg/store"
	"github.com/postrider/postrider/pkg/storetest"
	"github.com/postrider/postrider/services/ingress"
)

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
	if err := db.CreateCredential(t.Context(), store.Credential{Name: "app", Tenant: "acme", Kind: store.APIKeyCredential, KeySHA256: sum[:], ReversePaths: []string{"example.com"}}); err != nil {
		t.Fatal(err)
	}
	cfg := testConfig()
	cfg.HTTP.Listen = "127.0.0.1:0"
	cfg.HTTP.MaxBodyBytes, cfg.HTTP.MemoryBytes = 1<<20, 8<<20
	cfg.HTTP.MaxConnections, cfg.HTTP.Streams, cfg.HTTP.ReadTimeout = 10, 1, 10*time.Second
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
