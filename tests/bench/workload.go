package main

import (
	"fmt"
	"math/rand/v2"
	"os"
	"strings"
)

// workload is one kind of traffic: DESIGN.md §7.
type workload struct {
	name       string
	about      string
	sizeBytes  int  // of the content, about
	messages   int  // of one run
	reuse      bool // many messages per client connection
	recipients int  // per message, each in a domain (and at a sink) of its own
}

var workloads = []workload{
	{name: "a", about: "4 KiB", sizeBytes: 4 << 10, messages: 10000, reuse: true, recipients: 1},
	{name: "b", about: "64 KiB", sizeBytes: 64 << 10, messages: 3000, reuse: true, recipients: 1},
	{name: "d", about: "4 KiB, one message per connection", sizeBytes: 4 << 10, messages: 10000, recipients: 1},
	{name: "e", about: "4 KiB, 10 recipients in 10 domains", sizeBytes: 4 << 10, messages: 1000, reuse: true, recipients: 10},
}

func findWorkload(name string) (workload, error) {
	for _, w := range workloads {
		if w.name == name {
			return w, nil
		}
	}
	return workload{}, fmt.Errorf("no workload %q: want a, b, d or e", name)
}

// domain is the i-th destination domain. The sink of domain i listens on
// sinkAddress(i).
func domain(i int) string { return fmt.Sprintf("d%d.bench.example", i) }

var words = strings.Fields(`account activate additional address already amount and application available before
balance because been billing browser button change check click code complete confirm contact could customer date
days delivery details device discount does each email ends enjoy every expires first follow for free from get
have help here hours how important information invoice item just know last latest link list login made make
may member message month more name need never new news next not notice now number offer one only open option
order other our page password pay payment period phone plan please policy price privacy product profile
purchase question receive recent regards remember request reset return review save secure security see send
service settings ship shop sign since soon start statement status still store subscription summary support
team terms than thank that the their them then these this time today together total track transaction try
unsubscribe until update use user using valid verify view visit want was week welcome what when where which
will with within without work would year you your`)

// writeContent writes a message of about sizeBytes as an application sends
// it: HTML of random words with tracking links, which lz4 about halves.
// Lines end in LF, as smtp-source -F wants it.
func writeContent(path string, sizeBytes int) error {
	r := rand.New(rand.NewPCG(1, 2)) // the same content in every run
	var b strings.Builder
	b.WriteString(`From: "Example Shop" <news@shop.example>
To: "A. Customer" <customer@d0.bench.example>
Subject: Your order has been shipped: thank you for your purchase
Date: Mon, 02 Nov 2026 09:15:00 +0000
Message-ID: <20261102091500.7f3a9c@shop.example>
MIME-Version: 1.0
Content-Type: text/html; charset=utf-8
Content-Transfer-Encoding: 7bit
List-Unsubscribe: <https://shop.example/unsubscribe/91b37f20>, <mailto:leave@shop.example>

<!DOCTYPE html>
<html><head><title>Your order</title></head><body>
`)
	const end = "</body></html>\n"
	for b.Len() < sizeBytes-len(end) {
		fmt.Fprintf(&b, "<p style=\"margin:0 0 %dpx;color:#%06x\">", 8+r.IntN(16), r.IntN(1<<24))
		for line := b.Len(); b.Len() < line+300; {
			row := b.Len()
			for b.Len() < row+64 {
				b.WriteString(words[r.IntN(len(words))] + " ")
			}
			b.WriteString("\n")
		}
		fmt.Fprintf(&b, "<a href=\"https://t.shop.example/c/%016x%016x?u=%08x\">%s</a></p>\n",
			r.Uint64(), r.Uint64(), r.Uint32(), words[r.IntN(len(words))])
	}
	b.WriteString(end)
	return os.WriteFile(path, []byte(b.String()), 0o644)
}
