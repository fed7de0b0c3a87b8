package auth

import (
	"context"
	"crypto/rand"
	"crypto/subtle"
	"encoding/base64"
	"errors"
	"fmt"
	"strings"

	"github.com/xdg-go/stringprep"
	"golang.org/x/crypto/argon2"
)

// The cost of a hash: argon2id with 19 MiB, two passes, one lane, which the
// OWASP password storage cheat sheet gives as the least. It takes about 20 ms
// of one core. A stored hash names its own cost, so these may change.
const (
	hashMemory = 19 << 10 // KiB
	hashPasses = 2
	hashLanes  = 1
	hashSalt   = 16 // octets
	hashLength = 32 // octets
)

// What a stored hash may cost at most: it comes from a table that operators
// write.
const (
	maxMemory = 256 << 10 // KiB
	maxPasses = 16
	maxLanes  = 16
	maxLength = 64 // octets of salt, and of hash
)

// MaxPassword is the longest password, in octets.
const MaxPassword = 1024

// ErrPassword says that a password cannot be used: it is empty, too long, or
// has characters that clients do not agree about.
var ErrPassword = fmt.Errorf("a password has 1 to %d octets of UTF-8 and no control characters", MaxPassword)

// Hasher makes and verifies hashes of passwords, a bounded number at a time:
// each holds 19 MiB and a core. It is safe for concurrent use.
type Hasher struct{ slots chan struct{} }

// NewHasher returns a Hasher that runs up to parallel hashes at a time. It
// panics if parallel is not positive.
func NewHasher(parallel int) *Hasher {
	if parallel < 1 {
		panic("auth: parallel hashes must be positive")
	}
	return &Hasher{slots: make(chan struct{}, parallel)}
}

// Hash returns the hash of a new password, in PHC string format:
// "$argon2id$v=19$m=19456,t=2,p=1$salt$hash". Errors: ErrPassword, or that
// of ctx.
func (h *Hasher) Hash(ctx context.Context, password string) (string, error) {
	prepared, err := prepare(password)
	if err != nil {
		return "", err
	}
	turn, err := h.Turn(ctx)
	if err != nil {
		return "", err
	}
	defer turn.End()
	p := phc{memory: hashMemory, passes: hashPasses, lanes: hashLanes, salt: random(hashSalt)}
	p.hash = p.of(prepared, hashLength)
	return p.String(), nil
}

// Verify is Turn.Verify, in a turn of its own.
func (h *Hasher) Verify(ctx context.Context, hash, password string) (bool, error) {
	turn, err := h.Turn(ctx)
	if err != nil {
		return false, err
	}
	defer turn.End()
	return turn.Verify(hash, password)
}

// Turn is the right to hash, now. End it.
type Turn struct{ h *Hasher }

// Turn waits for a turn. Error: that of ctx.
func (h *Hasher) Turn(ctx context.Context) (Turn, error) {
	select {
	case h.slots <- struct{}{}:
	case <-ctx.Done():
		return Turn{}, ctx.Err()
	}
	if err := ctx.Err(); err != nil { // both were ready
		<-h.slots
		return Turn{}, err
	}
	return Turn{h}, nil
}

// End lets somebody else have the turn.
func (t Turn) End() { <-t.h.slots }

// Verify reports whether hash is of the password. An empty hash is of none,
// and takes the time of one of Hash. Error: a hash that cannot be read.
func (Turn) Verify(hash, password string) (bool, error) {
	if hash == "" {
		hash = nobody
	}
	p, err := parsePHC(hash)
	if err != nil {
		return false, err
	}
	prepared, err := prepare(password)
	usable := err == nil
	if !usable {
		prepared = "" // the answer is no; the time is the same
	}
	got := p.of(prepared, len(p.hash))
	return subtle.ConstantTimeCompare(got, p.hash) == 1 && usable && hash != nobody, nil
}

// nobody is a hash that no password verifies.
var nobody = phc{memory: hashMemory, passes: hashPasses, lanes: hashLanes,
	salt: make([]byte, hashSalt), hash: make([]byte, hashLength)}.String()

// of returns the hash of a password, with what p says but for its own hash.
func (p phc) of(password string, length int) []byte {
	return argon2.IDKey([]byte(password), p.salt, p.passes, p.memory, p.lanes, uint32(length))
}

// prepare is SASLprep (RFC 4013), as SCRAM and RFC 4616 ask: one password
// typed on two systems is the same octets. ASCII stays as it is.
func prepare(password string) (string, error) {
	if password == "" || len(password) > MaxPassword {
		return "", ErrPassword
	}
	prepared, err := stringprep.SASLprep.Prepare(password)
	if err != nil || prepared == "" {
		return "", ErrPassword
	}
	return prepared, nil
}

// phc is a hash in PHC string format, taken apart.
type phc struct {
	memory, passes uint32
	lanes          uint8
	salt, hash     []byte
}

var phcBase64 = base64.RawStdEncoding.Strict()

func (p phc) String() string {
	return fmt.Sprintf("$argon2id$v=%d$m=%d,t=%d,p=%d$%s$%s", argon2.Version, p.memory, p.passes, p.lanes,
		phcBase64.EncodeToString(p.salt), phcBase64.EncodeToString(p.hash))
}

var errPHC = errors.New("password hash is not argon2id in PHC string format")

func parsePHC(text string) (phc, error) {
	parts := strings.Split(text, "$")
	if len(parts) != 6 || parts[0] != "" || parts[1] != "argon2id" || parts[2] != fmt.Sprintf("v=%d", argon2.Version) {
		return phc{}, errPHC
	}
	var p phc
	if n, err := fmt.Sscanf(parts[3], "m=%d,t=%d,p=%d", &p.memory, &p.passes, &p.lanes); n != 3 || err != nil {
		return phc{}, errPHC
	}
	if parts[3] != fmt.Sprintf("m=%d,t=%d,p=%d", p.memory, p.passes, p.lanes) {
		return phc{}, errPHC
	}
	var errSalt, errHash error
	p.salt, errSalt = phcBase64.DecodeString(parts[4])
	p.hash, errHash = phcBase64.DecodeString(parts[5])
	if errSalt != nil || errHash != nil {
		return phc{}, errPHC
	}
	if p.memory < 8*uint32(p.lanes) || p.memory > maxMemory || p.passes < 1 || p.passes > maxPasses || p.lanes < 1 || p.lanes > maxLanes ||
		len(p.salt) < 8 || len(p.salt) > maxLength || len(p.hash) < 16 || len(p.hash) > maxLength {
		return phc{}, errPHC
	}
	return p, nil
}

// random returns n random octets.
func random(n int) []byte {
	b := make([]byte, n)
	rand.Read(b) // never fails: crypto/rand ends the process instead
	return b
}
