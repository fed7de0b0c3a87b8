package store_test

import (
	"bytes"
	"testing"
	"time"

	"github.com/postrider/postrider/pkg/mail"
	"github.com/postrider/postrider/pkg/store"
)

func keysOf(t *testing.T, s *store.Store) mail.BusKeys {
	t.Helper()
	keys, err := s.BusKeys(t.Context())
	must(t, err)
	return keys
}

func TestBusKeysRotate(t *testing.T) {
	f := setup(t)
	first := keysOf(t, f.Store)
	if len(first.Keys) != 1 || len(first.Keys[0].Secret) != 32 || time.Since(first.At).Abs() > time.Minute {
		t.Fatalf("keys of a new schema: %d, at %v", len(first.Keys), first.At)
	}
	rotate := func(overlap, olderThan time.Duration) int32 {
		id, err := f.RotateBusKey(t.Context(), overlap, olderThan)
		must(t, err)
		return id
	}
	if id := rotate(time.Hour, time.Hour); id != 0 {
		t.Errorf("a young key was replaced by %d", id)
	}
	second := rotate(time.Hour, 0)
	both := keysOf(t, f.Store).Keys
	if len(both) != 2 || both[0].ID != second || both[1].ID != first.Keys[0].ID || bytes.Equal(both[0].Secret, both[1].Secret) {
		t.Errorf("after a rotation: %v, want %d, which signs, and %d", both, second, first.Keys[0].ID)
	}
	third := rotate(0, 0)
	if last := keysOf(t, f.Store).Keys; len(last) != 1 || last[0].ID != third {
		t.Errorf("after a rotation without overlap: %v, want %d alone", last, third)
	}
	rotate(time.Hour, 0)
	if n := one[int](t, f, "SELECT count(*) FROM bus_keys"); n != 2 {
		t.Errorf("%d rows, want 2: keys that are not valid go at the next rotation", n)
	}
}

func TestBusKeysAreForServices(t *testing.T) {
	f := setup(t)
	for _, role := range []string{"ingress", "resolver", "delivery", "scheduler", "bounce"} {
		if n := len(keysOf(t, f.as(t, "postrider_"+role)).Keys); n != 1 {
			t.Errorf("%s reads %d keys, want 1", role, n)
		}
	}
	for _, role := range []string{"reader", "operator", "submit"} {
		if keys, err := f.as(t, "postrider_"+role).BusKeys(t.Context()); err == nil {
			t.Errorf("%s reads %d keys", role, len(keys.Keys))
		}
	}
	for role, may := range map[string]bool{"scheduler": true, "operator": true, "reader": false, "ingress": false, "delivery": false, "submit": false} {
		if _, err := f.as(t, "postrider_"+role).RotateBusKey(t.Context(), time.Hour, 0); (err == nil) != may {
			t.Errorf("%s rotates: %v, want that it may: %v", role, err, may)
		}
	}
}
