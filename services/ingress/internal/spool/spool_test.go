package spool

import (
	"bytes"
	"errors"
	"io"
	"math/rand/v2"
	"net/netip"
	"os"
	"testing"
)

var (
	ann = netip.MustParseAddr("192.0.2.1")
	bob = netip.MustParseAddr("192.0.2.2")
)

func open(t testing.TB, bytes int64) *Spool {
	t.Helper()
	s, err := Open(Config{Directory: t.TempDir(), Bytes: bytes})
	if err != nil {
		t.Fatal(err)
	}
	return s
}

// One client alone gets half, and however many come, there is room for the
// next one.
func TestBudgetIsFair(t *testing.T) {
	b := NewBudget(1200)
	one := b.Share(ann)
	for one.Take(1) {
	}
	if one.held != 600 {
		t.Errorf("alone: %d, want 600", one.held)
	}
	again := b.Share(ann)
	if again.Take(1) {
		t.Error("a second share of the same client has more")
	}
	two := b.Share(bob)
	for two.Take(1) {
	}
	if two.held != 300 {
		t.Errorf("the second client: %d, want 300", two.held)
	}
	one.Return(300)
	for two.Take(1) {
	}
	if two.held != 450 { // of the 900 that the first one leaves
		t.Errorf("the second client after a return: %d, want 450", two.held)
	}
	if again.TakeSpare(1) || !again.Borrow(450) || again.Borrow(1) {
		t.Error("spare or borrowed bytes are counted wrongly")
	}
	for _, s := range []*Share{&one, &two, &again} {
		s.Close()
	}
	if b.Used() != 0 || len(b.held) != 0 {
		t.Errorf("%d used, %d clients, want none", b.Used(), len(b.held))
	}
	six := b.Share(netip.MustParseAddr("2001:db8::1"))
	defer six.Close()
	near := b.Share(netip.MustParseAddr("2001:db8::2"))
	if six.Take(600); near.Take(1) {
		t.Error("two addresses of one /64 are two clients")
	}
}

// Content passes through memory and disk octet for octet, whatever room there
// is for it, and leaves nothing behind.
func TestContent(t *testing.T) {
	for _, memory := range []int64{2 * Small, 1 << 20, 64 << 20} {
		for _, size := range []int{0, 1, Small - Headroom, Small, Large - Headroom, Large, 3<<20 + 5} {
			s, budget := open(t, 64<<20), NewBudget(memory)
			want := make([]byte, size)
			for i := range want {
				want[i] = byte(rand.Uint32())
			}
			b, ok := s.Buffer(budget, ann, int64(size))
			if !ok {
				t.Fatalf("memory %d, size %d: no buffer", memory, size)
			}
			for rest := want; len(rest) > 0; {
				if len(b.Free()) == 0 {
					if err := b.Room(); err != nil {
						t.Fatal(err)
					}
				}
				n := copy(b.Free(), rest)
				b.Wrote(n)
				rest = rest[n:]
			}
			if b.Spilled() {
				if err := b.Head(); err != nil {
					t.Fatal(err)
				}
			}
			if head := min(size, 256<<10); !bytes.Equal(b.Content()[:head], want[:head]) {
				t.Errorf("memory %d, size %d: another beginning", memory, size)
			}
			if size > 100 {
				b.Cut([]Span{{10, 20}, {50, 100}})
				want = append(append(want[:10:10], want[20:50]...), want[100:]...)
			}
			b.Prepend([]byte("Received: "))
			got, err := io.ReadAll(b.All())
			if err != nil || !bytes.Equal(got, append([]byte("Received: "), want...)) {
				t.Errorf("memory %d, size %d: came as %d octets, %v", memory, size, len(got), err)
			}
			b.Close()
			if budget.Used() != 0 || s.Used() != 0 {
				t.Errorf("memory %d, size %d: %d and %d are still held", memory, size, budget.Used(), s.Used())
			}
			if names, err := os.ReadDir(s.directory); err != nil || len(names) > 0 {
				t.Errorf("files are left: %v, %v", names, err)
			}
		}
	}
}

// Content up to 8 MiB can be had whole, if memory is free.
func TestWhole(t *testing.T) {
	for _, tt := range []struct {
		size   int
		memory int64
		want   bool
	}{{100, Small * 2, true}, {3 << 20, 64 << 20, true}, {8 << 20, 64 << 20, true}, {8<<20 + 1, 64 << 20, false}, {3 << 20, 8 << 20, false}} {
		s := open(t, 64<<20)
		b, _ := s.Buffer(NewBudget(tt.memory), ann, 0)
		content := bytes.Repeat([]byte("x"), tt.size)
		for rest := content; len(rest) > 0; {
			if len(b.Free()) == 0 {
				if err := b.Room(); err != nil {
					t.Fatal(err)
				}
			}
			n := copy(b.Free(), rest)
			b.Wrote(n)
			rest = rest[n:]
		}
		ok, err := b.Whole()
		if ok != tt.want || err != nil || ok && !bytes.Equal(b.Content(), content) {
			t.Errorf("%d octets: %v, %v, %d in memory", tt.size, ok, err, len(b.Content()))
		}
		b.Close()
	}
}

// A client that fills the disk is told so, and the others are not.
func TestFull(t *testing.T) {
	s, memory := open(t, 8<<20), NewBudget(64<<20)
	fill := func(client netip.Addr) (written int64, err error) {
		b, ok := s.Buffer(memory, client, 0)
		if !ok {
			t.Fatal("no buffer")
		}
		t.Cleanup(b.Close)
		for ; err == nil; err = b.Room() {
			written += int64(len(b.Free()))
			b.Wrote(len(b.Free()))
		}
		return written, err
	}
	for _, who := range []netip.Addr{ann, bob} {
		written, err := fill(who)
		if !errors.Is(err, ErrFull) || written < 1<<20 {
			t.Errorf("%s wrote %d, %v", who, written, err)
		}
	}
	if _, err := Open(Config{Directory: "/nonexistent", Bytes: 64 << 20}); err == nil {
		t.Error("a directory that is not there is one")
	}
}
