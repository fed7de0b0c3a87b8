package store_test

import (
	"bytes"
	"slices"
	"testing"

	"github.com/postrider/postrider/pkg/mail"
	"github.com/postrider/postrider/pkg/store"
)

// A statement or a COPY that Postgres refuses takes the whole settle with it,
// and leaves the connection in order.
func TestSettleIsOneTransaction(t *testing.T) {
	f := setup(t)
	w := f.worker(t)
	sub := submission(2)
	f.accept(t, sub)
	good := settlement(f.claim(t, w, sub), relayed)
	badState, badHistory := good, good
	badState.Outcomes = slices.Clone(good.Outcomes)
	badState.Outcomes[1].Action = "nonsense"
	badHistory.Transaction.TLS = "a\x00b" // no text of Postgres has a NUL
	for _, bad := range []mail.Settlement{badState, badHistory} {
		if _, err := f.Settle(t.Context(), w, []mail.Settlement{bad}); err == nil {
			t.Fatal("settled")
		}
	}
	if lost := f.settle(t, w, good); lost != 0 {
		t.Errorf("%d outcomes lost: a refused settle has left its mark", lost)
	}
	if a := f.balanced(t); a.Relayed != 2 {
		t.Errorf("%+v", a)
	}
	if n := one[int](t, f, "SELECT count(*) FROM attempts"); n != 1 {
		t.Errorf("%d lines of history, want 1", n)
	}
}

// Contents of all sizes come back whole, also into memory that another one
// had before.
func TestContentsReuseMemory(t *testing.T) {
	f := setup(t)
	w := f.worker(t)
	r := route("mx.example.org")
	for _, size := range []int{1, 4095, 4096, 4097, 70000, store.ChunkBytes - 1, store.ChunkBytes, 1, 5000} {
		sub := submission(1)
		sub.Content = bytes.Repeat([]byte{byte(size), 'x', 0}, size)[:size]
		sub.SizeBytes = int64(size)
		f.accept(t, sub)
		reqs := []*mail.DeliveryRequest{request(sub, r)}
		contents, err := f.ClaimAndDispatch(t.Context(), w, reqs, []bool{true})
		if err != nil {
			t.Fatal(err)
		}
		if !bytes.Equal(contents[0].Bytes, sub.Content) {
			t.Errorf("%d octets: %d came back, or other ones", size, len(contents[0].Bytes))
		}
		contents[0].Free()
		if contents[0].Bytes != nil {
			t.Error("a content that was freed can still be read")
		}
	}
}
