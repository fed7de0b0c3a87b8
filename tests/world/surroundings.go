package world

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"net"
	"os"
	"path/filepath"
	"slices"
	"time"

	"github.com/postrider/postrider/pkg/dnstest"
	"github.com/postrider/postrider/tests/internal/proc"
)

// StartNATS starts the NATS server, with the data that are there.
func (w *World) StartNATS(ctx context.Context) error {
	config := filepath.Join(w.Dir, "nats.conf")
	text := fmt.Sprintf("listen: %q\njetstream { store_dir: %q }\n", w.address(1, natsPort), w.natsData())
	if err := os.WriteFile(config, []byte(text), 0o644); err != nil {
		return err
	}
	p, err := proc.Start(proc.Spec{
		Name: "nats", Path: filepath.Join(w.bin, "nats-server"), Args: []string{"-c", config}, LogDir: w.Dir,
	})
	if err != nil {
		return err
	}
	w.mu.Lock()
	w.nats = p
	w.mu.Unlock()
	ctx, cancel := context.WithTimeoutCause(ctx, readyLimit, errors.New("nats-server takes no connections"))
	defer cancel()
	return proc.Poll(ctx, func(ctx context.Context) error {
		var d net.Dialer
		c, err := d.DialContext(ctx, "tcp", w.address(1, natsPort))
		if err != nil {
			return err
		}
		return c.Close()
	})
}

func (w *World) natsData() string { return filepath.Join(w.Dir, "jetstream") }

// NATS returns the NATS server's process.
func (w *World) NATS() *proc.Process {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.nats
}

// LoseNATS kills the NATS server and deletes all its data.
func (w *World) LoseNATS() error {
	w.NATS().Kill()
	return os.RemoveAll(w.natsData())
}

// Remote returns the address for one more remote host, which the caller
// serves, and gives the name an A record for it.
func (w *World) Remote(name string) (string, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	host := 10 + w.hosts
	if host > 500 {
		return "", errors.New("no addresses left in the world's network")
	}
	w.hosts++
	w.zone.A[name] = []string{w.Address(host)}
	return w.address(host, RemotePort), w.DNS.Set(clone(w.zone))
}

// SetA gives a host name its addresses.
func (w *World) SetA(name string, addresses ...string) error {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.zone.A[name] = addresses
	return w.DNS.Set(clone(w.zone))
}

// SetMX gives a domain its mail exchangers, such as "10 mx1.example".
func (w *World) SetMX(domain string, mx ...string) error {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.zone.MX[domain] = mx
	return w.DNS.Set(clone(w.zone))
}

// clone copies what the methods change, as the server still reads it.
func clone(z dnstest.Zone) dnstest.Zone {
	z.MX, z.A = maps.Clone(z.MX), maps.Clone(z.A)
	z.TTL = time.Second
	z.ServFail = slices.Clone(z.ServFail)
	return z
}

// FailDNS makes DNS answer SERVFAIL for a name.
func (w *World) FailDNS(name string) error {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.zone.ServFail = append(w.zone.ServFail, name)
	return w.DNS.Set(clone(w.zone))
}

// HealDNS ends FailDNS.
func (w *World) HealDNS(name string) error {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.zone.ServFail = slices.DeleteFunc(slices.Clone(w.zone.ServFail), func(n string) bool { return n == name })
	return w.DNS.Set(clone(w.zone))
}

// Accounting is the row of the accounting view.
type Accounting struct {
	Accepted, Queued, Relayed, Failed, Expired, Cancelled, Unaccounted int64
}

// Accounting reads the accounting view.
func (w *World) Accounting(ctx context.Context) (Accounting, error) {
	var a Accounting
	err := w.DB.QueryRow(ctx, `SELECT accepted, queued, relayed, failed, expired, cancelled, unaccounted FROM postrider.accounting`).
		Scan(&a.Accepted, &a.Queued, &a.Relayed, &a.Failed, &a.Expired, &a.Cancelled, &a.Unaccounted)
	return a, err
}

// Idle returns nil when no recipient is queued and no report is due.
func (w *World) Idle(ctx context.Context) error {
	a, err := w.Accounting(ctx)
	if err != nil {
		return err
	}
	var unreported int64
	if err := w.DB.QueryRow(ctx, `SELECT count(*) FROM postrider.recipients
		WHERE final_at IS NOT NULL AND NOT final_reported`).Scan(&unreported); err != nil {
		return err
	}
	if a.Queued > 0 || unreported > 0 {
		return fmt.Errorf("not idle: %+v, %d recipients to report", a, unreported)
	}
	if a.Unaccounted != 0 {
		return fmt.Errorf("the accounting does not balance: %+v", a)
	}
	return nil
}

// NATSURL is where the NATS server takes clients.
func (w *World) NATSURL() string { return "nats://" + w.address(1, natsPort) }
