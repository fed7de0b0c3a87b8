package smtptest

import (
	"crypto/tls"
	"strings"
	"sync"
)

// Phase is a point of the dialogue where a rule can act.
type Phase string

// The phases. At Banner, Hello and the other commands the act replaces the
// reply. At Handshake it runs after the 220 to STARTTLS in place of the TLS
// handshake; at Body after the 354, before the content is read.
const (
	Banner    Phase = "banner"
	Hello     Phase = "ehlo" // EHLO
	Helo      Phase = "helo" // HELO
	StartTLS  Phase = "starttls"
	Handshake Phase = "handshake"
	Mail      Phase = "mail"
	Rcpt      Phase = "rcpt"
	Data      Phase = "data"
	Body      Phase = "body"
	Dot       Phase = "dot"
	Bdat      Phase = "bdat" // of an empty chunk that is not the last; others act at Dot
	Auth      Phase = "auth"
	Rset      Phase = "rset"
	Noop      Phase = "noop"
	Quit      Phase = "quit"
)

// Span is what a rule counts its hits over.
type Span int

// The spans. PerPath counts for each reverse-path or forward-path by itself.
const (
	PerServer Span = iota
	PerConnection
	PerTransaction
	PerPath
)

// Rule replaces the happy reply at one phase.
type Rule struct {
	At    Phase
	Match string // only commands whose text has this in it; at Dot: the reverse-path and recipients of the transaction
	Skip  int    // leave the first Skip hits alone
	Times int    // then act on so many; 0: on all
	Each  Span   // what Skip and Times count over
	Do    Act
}

// Script says what the server offers and how it misbehaves. The zero value
// takes all mail in plaintext.
type Script struct {
	// Address to listen on; "" is 127.0.0.1 with a free port.
	Address string
	// Hostname of the greeting; "" is mx.example.
	Hostname string
	// Extensions are the EHLO keywords, with parameters; nil is
	// DefaultExtensions. STARTTLS and SIZE are added by TLS and MaxSize.
	Extensions []string
	// TLS, if set, is offered by STARTTLS. See SelfSigned and Authority.
	TLS *tls.Config
	// ImplicitTLS begins TLS with the connection; TLS must be set.
	ImplicitTLS bool
	// LMTP makes it a server of RFC 2033. At Dot rules act for each accepted
	// recipient, whose path they match.
	LMTP bool
	// Users are the passwords of AUTH by user name. The mechanisms stand in
	// Extensions: "AUTH PLAIN LOGIN SCRAM-SHA-256".
	Users map[string]string
	// MaxSize, if not 0, is announced as SIZE and enforced, in octets.
	MaxSize int64
	// Rules are tried in order.
	Rules []Rule
	// Discard keeps only the size and hash of contents: for tests with very
	// many messages.
	Discard bool
	// Label, if set, names each message from its content, such as by a
	// header field: Transaction.Label. It must not keep the slice.
	Label func(content []byte) string
}

// DefaultExtensions are offered when a script does not say.
var DefaultExtensions = []string{"PIPELINING", "8BITMIME", "SMTPUTF8", "DSN", "ENHANCEDSTATUSCODES"}

// NoPipelining are the default extensions without PIPELINING.
var NoPipelining = []string{"8BITMIME", "SMTPUTF8", "DSN", "ENHANCEDSTATUSCODES"}

// rulebook is a list of rules with their counters.
type rulebook struct {
	mu    sync.Mutex
	rules []Rule
	hits  []map[hitKey]int // by rule; guarded by mu
}

// hitKey is the instance of a span that a hit belongs to.
type hitKey struct {
	connection, transaction int
	path                    string
}

func newRulebook(rules []Rule) *rulebook {
	b := &rulebook{rules: rules, hits: make([]map[hitKey]int, len(rules))}
	for i := range b.hits {
		b.hits[i] = map[hitKey]int{}
	}
	return b
}

// find counts the command against the rules and returns the act of the first
// that applies, or nil.
func (b *rulebook) find(at Phase, text string, where hitKey) Act {
	if len(b.rules) == 0 {
		return nil
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	for i, r := range b.rules {
		if r.At != at || !strings.Contains(text, r.Match) {
			continue
		}
		n := b.hits[i][where.over(r.Each)]
		b.hits[i][where.over(r.Each)]++
		if n >= r.Skip && (r.Times == 0 || n < r.Skip+r.Times) {
			return r.Do
		}
	}
	return nil
}

func (k hitKey) over(s Span) hitKey {
	switch s {
	case PerConnection:
		return hitKey{connection: k.connection}
	case PerTransaction:
		return hitKey{connection: k.connection, transaction: k.transaction}
	case PerPath:
		return hitKey{path: k.path}
	default:
		return hitKey{}
	}
}
