package store_test

import (
	"bytes"
	"crypto/rand"
	"encoding/base64"
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

// Most mail lies compressed in its row, and not in a TOAST table: three
// messages of 4 KiB share a page.
func TestContentIsCompressedInItsRow(t *testing.T) {
	f := setup(t)
	half := make([]byte, 1500)
	rand.Read(half)
	for _, content := range [][]byte{
		slices.Concat([]byte(base64.StdEncoding.EncodeToString(half)), bytes.Repeat([]byte("text "), 400)),  // 4,000 octets
		slices.Concat([]byte(base64.StdEncoding.EncodeToString(half)), bytes.Repeat([]byte("text "), 6000)), // 32,000
	} {
		sub := submission(1)
		sub.Content, sub.SizeBytes = content, int64(len(content))
		f.accept(t, sub)
		if method := one[*string](t, f, "SELECT pg_column_compression(content) FROM contents WHERE queue_id = $1", sub.ID); method == nil || *method != "lz4" {
			t.Errorf("%d octets are compressed by %v, want lz4", len(content), method)
		}
		if size := one[int](t, f, "SELECT pg_column_size(content) FROM contents WHERE queue_id = $1", sub.ID); size > 2500 {
			t.Errorf("%d octets take %d in their row", len(content), size)
		}
	}
	if n := one[int](t, f, `SELECT count(*) FROM pg_partition_tree('contents') t JOIN pg_class c ON c.oid = t.relid
		WHERE t.isleaf AND pg_relation_size(c.reltoastrelid) > 0`); n != 0 {
		t.Errorf("%d partitions have contents in their TOAST table", n)
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

// Requests of one message for several sites, or several transactions with one
// site, free their contents one by one: the memory of one is never another's.
func TestRequestsOfOneMessageShareNoMemory(t *testing.T) {
	f := setup(t)
	w := f.worker(t)
	sub := submission(4)
	f.accept(t, sub)
	var reqs []*mail.DeliveryRequest
	var now []bool
	for i := range sub.Recipients {
		req := request(sub, route("mx.example.org"))
		req.Recipients = req.Recipients[i : i+1]
		reqs, now = append(reqs, req), append(now, i < 2)
	}
	claimed, err := f.ClaimAndDispatch(t.Context(), w, reqs, now)
	if err != nil {
		t.Fatal(err)
	}
	dispatched, err := f.Dispatch(t.Context(), w, reqs[2:])
	if err != nil {
		t.Fatal(err)
	}
	contents := append(claimed[:2], dispatched...)
	for i, c := range contents {
		if !bytes.Equal(c.Bytes, sub.Content) {
			t.Fatalf("content %d is %q", i, c.Bytes)
		}
	}
	for i := range contents {
		clear(contents[i].Bytes) // as one does who got the memory that this request freed
		for j, other := range contents[i+1:] {
			if !bytes.Equal(other.Bytes, sub.Content) {
				t.Fatalf("request %d and request %d have the same memory", i, i+1+j)
			}
		}
	}
}
