package store_test

import (
	"bytes"
	"testing"

	"github.com/postrider/postrider/pkg/mail"
	"github.com/postrider/postrider/pkg/store"
)

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
