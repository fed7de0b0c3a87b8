package delivery

import (
	"context"
	"log/slog"
	"time"
)

// reconcileEvery is how often claims are compared with what Postgres has, even
// if nothing has happened to Postgres that we noticed.
const reconcileEvery = time.Minute

// runReconcile gives back claims that Postgres has and this worker does not
// know of, until ctx is done: at once when Postgres may have come back without
// what it had committed.
func (w *worker) runReconcile(ctx context.Context) error {
	every := time.NewTicker(reconcileEvery)
	defer every.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-every.C:
		case <-w.reconcileNow:
		}
		for !w.reconcile(ctx) && ctx.Err() == nil {
			sleep(ctx, maxStorePause)
		}
	}
}

// reconcile reports whether it has succeeded.
func (w *worker) reconcile(ctx context.Context) bool {
	ctx, cancel := context.WithTimeout(ctx, storeWithin)
	defer cancel()
	found, err := w.store.Reconcile(ctx, w.id)
	if err != nil {
		slog.Debug("claims not compared with Postgres; will retry", "worker_id", w.id, "error", err)
		return false
	}
	if found.Recipients > 0 {
		slog.Warn("Postgres came back with claims that had ended here: they wait again", "worker_id", w.id,
			"recipients", found.Recipients, "uncertain", found.Uncertain)
		w.metrics.unknown.Add(ctx, int64(found.Recipients))
	}
	return true
}

// sawSession has the claims compared when the session of the renewals is not
// the one of before.
func (h *homes) sawSession(session string) {
	if h.session != "" && h.session != session {
		slog.Info("the connection to Postgres is a new one: claims are compared", "worker_id", h.id)
		select {
		case h.reconcileNow <- struct{}{}:
		default:
		}
	}
	h.session = session
}
