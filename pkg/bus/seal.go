package bus

import (
	"crypto/hmac"
	"crypto/rand"
	"crypto/sha256"
	"encoding/binary"
	"fmt"
	"hash"
	"sync"
	"time"

	"google.golang.org/protobuf/encoding/protowire"

	"github.com/postrider/postrider/pkg/mail"
)

// A frame ends in its seal: field 15 of each frame message (frame.proto), of
// a fixed size, so that who reads the frame finds it before anything else is
// looked at. All numbers are big-endian:
//
//	octets  0 to  3   id of the key
//	octets  4 to 11   when it was published, in microseconds since 1970, by the clock of Postgres
//	octets 12 to 19   the publisher: random, new with each connection
//	octets 20 to 27   its number among the frames of the publisher: they grow
//	octets 28 to 59   HMAC-SHA-256 (RFC 2104) over the subject, a zero octet, and all of the frame before these
const (
	fieldSeal protowire.Number = 15
	sealHead                   = 28
	sealBytes                  = sealHead + sha256.Size
	sealTag                    = byte(fieldSeal)<<3 | byte(protowire.BytesType)
	sealSize                   = 2 + sealBytes // with tag and length, one octet each
)

// seal is what a seal says, but for its MAC.
type seal struct {
	key       int32
	at        time.Time
	publisher uint64
	number    uint64
}

// appendSeal makes a frame for the subject of what is in it.
func appendSeal(frame []byte, subject string, s seal, k *key) []byte {
	frame = append(frame, sealTag, sealBytes)
	frame = binary.BigEndian.AppendUint32(frame, uint32(s.key))
	frame = binary.BigEndian.AppendUint64(frame, uint64(s.at.UnixMicro()))
	frame = binary.BigEndian.AppendUint64(frame, s.publisher)
	frame = binary.BigEndian.AppendUint64(frame, s.number)
	return k.appendMAC(frame, subject, frame)
}

// readSeal takes a frame apart, and believes nothing of what it says.
func readSeal(frame []byte) (s seal, signed, mac []byte, ok bool) {
	start := len(frame) - sealSize
	if start < 0 || frame[start] != sealTag || frame[start+1] != sealBytes {
		return seal{}, nil, nil, false
	}
	head := frame[start+2:]
	return seal{
		key:       int32(binary.BigEndian.Uint32(head)),
		at:        time.UnixMicro(int64(binary.BigEndian.Uint64(head[4:]))),
		publisher: binary.BigEndian.Uint64(head[12:]),
		number:    binary.BigEndian.Uint64(head[20:]),
	}, frame[:start+2+sealHead], head[sealHead:], true
}

// key makes MACs. Its methods may be called at the same time.
type key struct {
	mail.BusKey
	hashes sync.Pool // of hash.Hash: keyed once, used again
}

func newKey(k mail.BusKey) *key {
	return &key{BusKey: k, hashes: sync.Pool{New: func() any { return hmac.New(sha256.New, k.Secret) }}}
}

func (k *key) appendMAC(dst []byte, subject string, signed []byte) []byte {
	h := k.hashes.Get().(hash.Hash)
	defer k.hashes.Put(h)
	h.Reset()
	var name [64]byte // subjects are short: without an allocation
	h.Write(append(append(name[:0], subject...), 0))
	h.Write(signed)
	return h.Sum(dst)
}

func (k *key) verifies(subject string, signed, mac []byte) bool {
	var want [sha256.Size]byte
	return hmac.Equal(k.appendMAC(want[:0], subject, signed), mac)
}

// signer seals what one connection publishes.
type signer struct {
	keys *keyring

	mu        sync.Mutex // guards what follows, and that frames leave in the order of their numbers
	publisher uint64
	number    uint64
}

// renew makes the signer another publisher: after a disconnect nobody knows in
// which order the last frames arrive.
func (s *signer) renew() {
	var b [8]byte
	rand.Read(b[:])
	s.mu.Lock()
	defer s.mu.Unlock()
	s.publisher, s.number = binary.BigEndian.Uint64(b[:]), 0
}

// send seals the frame and hands it to publish, which must not keep it.
func (s *signer) send(subject string, frame []byte, publish func(subject string, frame []byte) error) error {
	set := s.keys.now()
	if set == nil {
		return fmt.Errorf("%w: %w", ErrDown, errNoKeys)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.number++
	return publish(subject, appendSeal(frame, subject, seal{set.signs.ID, set.time(), s.publisher, s.number}, set.signs))
}
