package bus

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"sync"
	"testing"
	"time"

	"pgregory.net/rapid"

	"github.com/postrider/postrider/pkg/mail"
)

// postgres tells keys as the table has them.
type postgres struct {
	mu    sync.Mutex // guards what follows
	keys  []mail.BusKey
	ahead time.Duration // of its clock
	err   error
	asked int
}

func (p *postgres) BusKeys(context.Context) (mail.BusKeys, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.asked++
	return mail.BusKeys{Keys: p.keys, At: time.Now().Add(p.ahead)}, p.err
}

func (p *postgres) set(keys ...mail.BusKey) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.keys = keys
}

func keyNo(id int32) mail.BusKey {
	return mail.BusKey{ID: id, Secret: bytes.Repeat([]byte{byte(id)}, 32)}
}

// process is one that publishes and takes frames.
type process struct {
	keys *keyring
	signer
	*gate
}

func newProcess(p *postgres) *process {
	keys := &keyring{source: p, changed: func() {}}
	out := &process{keys: keys, signer: signer{keys: keys}, gate: newGate(keys, time.Minute)}
	out.renew()
	keys.refresh(context.Background())
	return out
}

// publish returns the next frame of the process.
func (p *process) publish(t testing.TB, subject, body string) []byte {
	t.Helper()
	var out []byte
	err := p.send(subject, []byte(body), func(_ string, frame []byte) error {
		out = bytes.Clone(frame)
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return out
}

func (p *process) takes(t testing.TB, subject string, frame []byte, position uint64, want error) {
	t.Helper()
	body, _, err := p.open(t.Context(), subject, frame, position)
	if !errors.Is(err, want) || want == nil && err != nil {
		t.Fatalf("frame at %d: %q, %v, want %v", position, body, err, want)
	}
}

func TestFrameIsRefused(t *testing.T) {
	db := &postgres{keys: []mail.BusKey{keyNo(1)}}
	from, to := newProcess(db), newProcess(db)
	stranger := newProcess(&postgres{keys: []mail.BusKey{{ID: 1, Secret: bytes.Repeat([]byte{9}, 32)}}})
	late := newProcess(&postgres{keys: []mail.BusKey{keyNo(1)}, ahead: -2 * time.Minute})
	early := newProcess(&postgres{keys: []mail.BusKey{keyNo(1)}, ahead: time.Minute})
	const subject, body = "postrider.ready.7", "what to relay, and where"
	frame := from.publish(t, subject, body)
	for _, c := range []struct {
		name    string
		subject string
		frame   []byte
		want    error
	}{
		{"without a seal", subject, []byte(body), unsigned},
		{"empty", subject, nil, unsigned},
		{"of another subject", "postrider.ready.8", from.publish(t, subject, body), forged},
		{"a subject that takes over what follows it", subject + "\x00", from.publish(t, subject, body), forged},
		{"of another key", subject, stranger.publish(t, subject, body), forged},
		{"of an unknown key", subject, newProcess(&postgres{keys: []mail.BusKey{keyNo(2)}}).publish(t, subject, body), unknownKey},
		{"from before", subject, late.publish(t, subject, body), tooOld},
		{"from a time to come", subject, early.publish(t, subject, body), fromFuture},
		{"with something behind it", subject, append(bytes.Clone(frame), 0), unsigned},
	} {
		t.Run(c.name, func(t *testing.T) { to.takes(t, c.subject, c.frame, 1, c.want) })
	}
	for i := range frame {
		if _, _, err := to.open(t.Context(), subject, frame[:i], 1); err == nil {
			t.Errorf("the first %d octets are let in", i)
		}
		changed := bytes.Clone(frame)
		changed[i] ^= 0x10
		if _, _, err := to.open(t.Context(), subject, changed, 1); err == nil {
			t.Errorf("let in with octet %d changed", i)
		}
	}
	got, age, err := to.open(t.Context(), subject, frame, 1)
	if err != nil || string(got) != body || age < 0 || age > time.Minute {
		t.Errorf("the frame itself: %q, age %v, %v", got, age, err)
	}
}

// The clocks of the processes need not agree: that of Postgres counts.
func TestClockOfPostgresCounts(t *testing.T) {
	p := &postgres{keys: []mail.BusKey{keyNo(1)}, ahead: 42 * time.Hour}
	from, to := newProcess(p), newProcess(p)
	to.takes(t, "s", from.publish(t, "s", "x"), 1, nil)
}

func TestReplayIsRefused(t *testing.T) {
	db := &postgres{keys: []mail.BusKey{keyNo(1)}}
	from, to := newProcess(db), newProcess(db)
	var frames [][]byte
	for range 10 {
		frames = append(frames, from.publish(t, "s", "x"))
	}
	to.takes(t, "s", frames[0], 10, nil)
	to.takes(t, "s", frames[0], 10, nil)      // the server gives it again
	to.takes(t, "s", frames[0], 11, replayed) // and somebody else published it again
	to.takes(t, "s", frames[0], 11, replayed)
	to.takes(t, "s", frames[3], 16, nil)
	to.takes(t, "s", frames[2], 14, nil)      // another handler had it until now
	to.takes(t, "s", frames[1], 17, replayed) // never seen here, but behind one that is younger
	to.takes(t, "s", frames[1], 12, nil)      // itself
	to.takes(t, "s", frames[4], 1<<48|1, nil) // a new stream begins to count anew
	to.takes(t, "s", frames[4], 1<<48|2, replayed)
	to.takes(t, "s", frames[2], 1<<48|2, replayed)
	from.renew()
	to.takes(t, "s", from.publish(t, "s", "x"), 1<<48|3, nil)
}

// Whatever is given again, whenever: no frame that its publisher put into the
// stream is refused, and a copy behind what was seen never is let in.
func TestTrail(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		var trail trail
		position := uint64(0)
		type entry struct {
			number, position uint64
			copied           bool
		}
		var stream []entry
		for number := uint64(1); number <= 40; number++ {
			position += rapid.Uint64Range(1, 3).Draw(t, "gap")
			stream = append(stream, entry{number, position, false})
			if rapid.Bool().Draw(t, "copy") {
				position++
				stream = append(stream, entry{rapid.Uint64Range(1, number).Draw(t, "of"), position, true})
			}
		}
		seen := map[uint64]uint64{} // highest number let in, by position
		for range 200 {
			e := rapid.SampledFrom(stream).Draw(t, "frame")
			_, before := seen[e.position]
			must := false // be refused
			for at, number := range seen {
				must = must || at < e.position && number >= e.number
			}
			got := trail.follows(e.number, e.position)
			switch {
			case e.copied && must && got && !before:
				t.Fatalf("a copy of %d at %d is let in", e.number, e.position)
			case !e.copied && !got && !must:
				t.Fatalf("frame %d at %d is refused", e.number, e.position)
			case got:
				seen[e.position] = e.number
			}
		}
	})
}

func TestTrailIsBounded(t *testing.T) {
	var trail trail
	for n := range uint64(10 * trailLength) {
		if !trail.follows(n, 2*n) {
			t.Fatalf("frame %d is refused", n)
		}
	}
	if len(trail.seen) > trailLength {
		t.Errorf("%d frames are remembered", len(trail.seen))
	}
	if trail.follows(1, 100*trailLength) {
		t.Error("a copy of one that is forgotten is let in")
	}
}

func TestKeysRotate(t *testing.T) {
	db := &postgres{keys: []mail.BusKey{keyNo(1)}}
	from, to := newProcess(db), newProcess(db)
	old := from.publish(t, "s", "x")
	db.set(keyNo(2), keyNo(1))
	from.keys.refresh(t.Context())
	// A frame with a key that is not known has the keys read before it is
	// refused; but not again for every such frame.
	to.keys.readAt = time.Time{}
	to.takes(t, "s", from.publish(t, "s", "x"), 2, nil)
	to.takes(t, "s", old, 1, nil)
	asked := db.asked
	stranger := newProcess(&postgres{keys: []mail.BusKey{keyNo(3)}})
	for range 100 {
		to.takes(t, "s", stranger.publish(t, "s", "x"), 3, unknownKey)
	}
	if db.asked > asked+1 {
		t.Errorf("Postgres was asked %d times for 100 frames", db.asked-asked)
	}
	db.set(keyNo(2))
	to.keys.refresh(t.Context())
	to.takes(t, "s", old, 1, unknownKey)

	// What was read stays while Postgres is away. Who has read nothing trusts
	// nothing, refuses nothing and signs nothing.
	db.err = errors.New("away")
	to.keys.refresh(t.Context())
	to.takes(t, "s", from.publish(t, "s", "x"), 3, nil)
	blind := newProcess(db)
	if _, _, err := blind.open(t.Context(), "s", from.publish(t, "s", "x"), 4); err == nil || errors.As(err, new(refusal)) {
		t.Errorf("without keys: %v, want an error that is no refusal", err)
	}
	if err := blind.send("s", nil, nil); !errors.Is(err, ErrDown) {
		t.Errorf("publish without keys: %v, want ErrDown", err)
	}
	db.err, db.keys = nil, nil
	if blind.keys.refresh(t.Context()); blind.keys.now() != nil {
		t.Error("a table without keys gave some")
	}
}

func TestRefusalsAreLoggedNowAndThen(t *testing.T) {
	var r refusals
	lines := 0
	for range 1000 {
		lines += min(r.count(forged), 1)
	}
	if lines != 1 || r.count(replayed) != 1 {
		t.Errorf("%d lines for 1000 refusals of one kind", lines)
	}
}

// FuzzOpen: no octets that are not ours are let in, and none panics.
func FuzzOpen(f *testing.F) {
	p := newProcess(&postgres{keys: []mail.BusKey{keyNo(1)}})
	stranger := newProcess(&postgres{keys: []mail.BusKey{{ID: 1, Secret: make([]byte, 32)}}})
	f.Add([]byte{}, "postrider.queued")
	f.Add(stranger.publish(f, "postrider.queued", ""), "postrider.queued")
	f.Add(stranger.publish(f, "postrider.ready.1", "body"), "postrider.ready.2")
	f.Fuzz(func(t *testing.T, frame []byte, subject string) {
		if body, _, err := p.open(context.Background(), subject, frame, 1); err == nil {
			t.Errorf("let in: %q", body)
		}
		sealed := p.publish(t, subject, string(frame))
		if body, _, err := p.open(context.Background(), subject, sealed, p.number); err != nil || !bytes.Equal(body, frame) {
			t.Errorf("%q came back as %q, %v", frame, body, err)
		}
	})
}

func BenchmarkSeal(b *testing.B) {
	for _, size := range []int{300, 4 << 10, 64 << 10} {
		b.Run(fmt.Sprintf("%d octets", size), func(b *testing.B) {
			p := newProcess(&postgres{keys: []mail.BusKey{keyNo(1)}})
			frame := make([]byte, size, size+sealSize)
			b.SetBytes(int64(size))
			b.ReportAllocs()
			position := uint64(0)
			for b.Loop() {
				err := p.send("postrider.ready.7", frame, func(subject string, frame []byte) error {
					position++
					_, _, err := p.open(context.Background(), subject, frame, position)
					return err
				})
				if err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}
