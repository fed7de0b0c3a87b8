package spool

import (
	"net/netip"
	"sync"
)

// Budget is an amount of bytes of which clients hold shares. What one client
// holds is never more than what it leaves to all others: alone it has half of
// the budget, and of n who want more, each has one of n+1 parts. So there is
// always room for who comes next. It is safe for concurrent use.
type Budget struct {
	limit int64

	mu   sync.Mutex // guards what follows
	used int64
	held map[netip.Prefix]int64 // by client
}

// NewBudget returns a budget of so many bytes.
func NewBudget(limit int64) *Budget {
	return &Budget{limit: limit, held: map[netip.Prefix]int64{}}
}

// Used returns how many bytes are held.
func (b *Budget) Used() int64 {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.used
}

// Share returns the share of a client, with nothing in it. A client is an
// address of IPv4 or a /64 of IPv6.
func (b *Budget) Share(client netip.Addr) Share {
	client = client.Unmap().WithZone("")
	bits := 32
	if client.Is6() {
		bits = 64
	}
	who, _ := client.Prefix(bits) // an address that is none is one client, too
	return Share{of: b, who: who}
}

// Share is what one message or transaction holds of a budget. One goroutine
// at a time uses it.
type Share struct {
	of   *Budget
	who  netip.Prefix
	held int64
}

// Take takes n bytes more, or nothing: false.
func (s *Share) Take(n int64) bool {
	return s.take(n, func(free, mine int64) bool { return mine+n <= free })
}

// TakeSpare is as Take, for what the client can do without: it leaves half of
// the share for what it cannot.
func (s *Share) TakeSpare(n int64) bool {
	return s.take(n, func(free, mine int64) bool { return mine+n <= free/2 })
}

// Borrow is as Take, and looks only at what is free, not at what the client
// holds already. It is for work that ends soon, whatever the client does.
func (s *Share) Borrow(n int64) bool {
	return s.take(n, func(int64, int64) bool { return true })
}

func (s *Share) take(n int64, fair func(free, mine int64) bool) bool {
	b := s.of
	b.mu.Lock()
	defer b.mu.Unlock()
	free, mine := b.limit-b.used, b.held[s.who]
	if n > free || !fair(free, mine) {
		return false
	}
	b.used += n
	b.held[s.who] = mine + n
	s.held += n
	return true
}

// Return gives n bytes back.
func (s *Share) Return(n int64) {
	if n == 0 {
		return
	}
	b := s.of
	b.mu.Lock()
	defer b.mu.Unlock()
	b.used -= n
	s.held -= n
	if b.held[s.who] -= n; b.held[s.who] == 0 {
		delete(b.held, s.who)
	}
}

// Close gives everything back. Take may be used again after it.
func (s *Share) Close() { s.Return(s.held) }
