package smtptest

import (
	"crypto/sha256"
	"net/netip"
	"time"
)

// Connection is the log entry of one TCP connection.
type Connection struct {
	ID       int // 1 to n, in the order of acceptance
	Remote   netip.AddrPort
	OpenedAt time.Time
	ClosedAt time.Time // zero while open
	Hello    string    // argument of the last EHLO or HELO
	Extended bool      // the last greeting was EHLO
	TLS      string    // version and cipher suite; "" in plaintext
	Commands []string  // verbs, in order; the first 1000
}

// Recipient is one RCPT command of a transaction.
type Recipient struct {
	Path   string // without angle brackets
	Params string // what follows the path, such as "NOTIFY=NEVER"
	Code   int    // of our reply
}

// Transaction is the log entry of one MAIL command and what followed.
type Transaction struct {
	Connection   int // Connection.ID
	Hello        string
	TLS          string
	User         string // who has authenticated; "" is nobody
	ReversePath  string // without angle brackets
	Params       string // what follows the path, such as "SIZE=1000 BODY=8BITMIME"
	Recipients   []Recipient
	MailAt       time.Time
	DotAt        time.Time // the final dot was read; zero if it never came
	Code         int       // of the reply to the dot; 0 if none was given
	Content      []byte    // dots unstuffed; nil with Script.Discard
	SHA256       [sha256.Size]byte
	Size         int64  // of the content
	Label        string // see Script.Label
	EightBit     bool   // the content has octets over 127
	LongestLine  int    // of the content, without CRLF
	Chunked      bool   // it came by BDAT
	DataIsBroken bool   // the connection ended inside the content
}

// Accepted returns the paths of the recipients that were taken.
func (t Transaction) Accepted() []string {
	var paths []string
	for _, r := range t.Recipients {
		if r.Code/100 == 2 {
			paths = append(paths, r.Path)
		}
	}
	return paths
}

// Delivered reports whether the message was taken: 250 to the final dot.
func (t Transaction) Delivered() bool { return t.Code/100 == 2 }

// Transactions returns all transactions that are over, in the order of
// their end, also those that were refused or broken off.
func (s *Server) Transactions() []Transaction {
	s.mu.Lock()
	defer s.mu.Unlock()
	return append([]Transaction(nil), s.transactions...)
}

// Messages returns the transactions whose message was taken.
func (s *Server) Messages() []Transaction {
	s.mu.Lock()
	defer s.mu.Unlock()
	var taken []Transaction
	for _, t := range s.transactions {
		if t.Delivered() {
			taken = append(taken, t)
		}
	}
	return taken
}

// Count returns the number of messages taken so far, without copying them.
func (s *Server) Count() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.taken
}

// Connections returns the log of connections, open ones too.
func (s *Server) Connections() []Connection {
	s.mu.Lock()
	defer s.mu.Unlock()
	all := make([]Connection, len(s.connections))
	for i, c := range s.connections {
		all[i] = *c
		all[i].Commands = append([]string(nil), c.Commands...)
	}
	return all
}

// Open returns the number of connections that are open now.
func (s *Server) Open() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.forgetClosed()
	return len(s.open)
}

// HighWater returns the largest number of connections that were open at
// once. A connection is closed when the client has closed its side.
func (s *Server) HighWater() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.highWater
}

// Violations returns what the client did against the protocol.
func (s *Server) Violations() []string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return append([]string(nil), s.violations...)
}
