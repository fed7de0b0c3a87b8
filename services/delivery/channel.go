package delivery

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"github.com/postrider/postrider/pkg/mail"
	"github.com/postrider/postrider/pkg/store"
	"github.com/postrider/postrider/services/delivery/internal/smtpclient"
)

// channel is what a route wants of a connection beside its hosts and TLS.
type channel struct {
	implicitTLS bool
	lmtp        bool
	credential  string
}

func channelOf(r *mail.DeliveryRequest) channel {
	return channel{r.Route.ImplicitTLS, r.Route.LMTP, r.Route.Credential}
}

// credentialAge is how long a credential is remembered: a password that was
// changed is used as soon.
const credentialAge = 10 * time.Second

// credentials remembers what we authenticate by.
type credentials struct {
	mu    sync.Mutex
	known map[string]knownCredential // guarded by mu
}

type knownCredential struct {
	credential smtpclient.Credential
	readAt     time.Time
}

// credential returns a credential by its name; nil for none.
func (w *worker) credential(ctx context.Context, name string) (*smtpclient.Credential, error) {
	if name == "" {
		return nil, nil
	}
	c := &w.credentials
	c.mu.Lock()
	known, ok := c.known[name]
	c.mu.Unlock()
	if ok && time.Since(known.readAt) < credentialAge {
		return &known.credential, nil
	}
	var found store.RelayCredential
	missing := false
	err := w.insist(ctx, func() (err error) {
		within, cancel := context.WithTimeout(ctx, storeWithin)
		defer cancel()
		found, err = w.store.RelayCredential(within, name)
		if missing = errors.Is(err, store.ErrNotFound); missing {
			return nil
		}
		return err
	})
	switch {
	case missing:
		return nil, fmt.Errorf("there is no relay credential %s", name)
	case err != nil:
		return nil, err
	}
	known = knownCredential{smtpclient.Credential{Username: found.Username, Secret: found.Secret}, time.Now()}
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.known == nil {
		c.known = map[string]knownCredential{}
	}
	c.known[name] = known
	return &known.credential, nil
}
