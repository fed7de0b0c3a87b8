package store_test

import (
	"context"
	"crypto/rand"
	"encoding/base64"
	"testing"

	"github.com/postrider/postrider/pkg/mail"
	"github.com/postrider/postrider/pkg/store"
	"github.com/postrider/postrider/pkg/storetest"
)

// BenchmarkWalk takes batches of messages of 4 KiB through every step of the
// store. One operation is one message.
func BenchmarkWalk(b *testing.B) {
	const batch = 20
	s, err := store.Open(context.Background(), store.Config{URL: storetest.New(b), MaxConns: 4})
	if err != nil {
		b.Fatal(err)
	}
	defer s.Close()
	w, err := s.RegisterWorker(b.Context(), "bench", lease)
	if err != nil {
		b.Fatal(err)
	}
	half := make([]byte, 1500)
	rand.Read(half)
	content := []byte("Subject: x\r\n\r\n" + base64.StdEncoding.EncodeToString(half) + string(make([]byte, 2000)) + "\r\n")
	r := route("mx.example.org")
	b.ReportAllocs()
	for b.Loop() {
		var subs []*mail.Submission
		var reqs []*mail.DeliveryRequest
		for range batch {
			sub := submission(1)
			sub.Content, sub.SizeBytes = content, int64(len(content))
			subs = append(subs, sub)
			reqs = append(reqs, request(sub, r))
		}
		if err := s.Accept(b.Context(), subs); err != nil {
			b.Fatal(err)
		}
		if err := s.Claim(b.Context(), w, reqs); err != nil {
			b.Fatal(err)
		}
		if _, err := s.Dispatch(b.Context(), w, reqs); err != nil {
			b.Fatal(err)
		}
		var sts []mail.Settlement
		for _, req := range reqs {
			sts = append(sts, settlement(req, relayed))
		}
		if lost, err := s.Settle(b.Context(), w, sts); err != nil || lost != 0 {
			b.Fatal(lost, err)
		}
	}
	b.ReportMetric(float64(b.Elapsed().Microseconds())/float64(b.N*batch), "µs/message")
}
