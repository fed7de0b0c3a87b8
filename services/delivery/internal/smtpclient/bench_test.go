package smtpclient

import (
	"strings"
	"testing"

	"github.com/postrider/postrider/pkg/smtptest"
)

// BenchmarkSend is one message of 4 KiB on an open connection; the server's
// share is in the time and not in the allocations of interest.
func BenchmarkSend(b *testing.B) {
	mx := smtptest.Start(b, smtptest.Script{Discard: true})
	host, o := optionsFor(mx)
	s, failed := Dial(b.Context(), host, o)
	if s == nil {
		b.Fatal(failed)
	}
	defer s.Close()
	tx := message(strings.Repeat("0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcd\r\n", 64), "a@b.example")
	b.ReportAllocs()
	for b.Loop() {
		if got := s.Send(b.Context(), tx); !got.Answers[0].Reply.Positive() {
			b.Fatal(codes(got))
		}
	}
}
