package shaping

import "time"

// Timeouts are the longest waits for a remote host, by phase of the dialogue.
// Each is started anew at its phase; there is none for the whole.
type Timeouts struct {
	Connect  time.Duration // connect_timeout: TCP connection
	Banner   time.Duration // banner_timeout: greeting
	Hello    time.Duration // ehlo_timeout: EHLO, HELO
	StartTLS time.Duration // starttls_timeout: STARTTLS and the handshake, each
	Mail     time.Duration // mail_from_timeout: MAIL
	Rcpt     time.Duration // rcpt_to_timeout: each RCPT
	Data     time.Duration // data_timeout: the 354
	Block    time.Duration // data_block_timeout: each write of at most 64 KiB
	Dot      time.Duration // data_dot_timeout: the reply to the final dot
	Reset    time.Duration // rset_timeout: RSET
}

// DefaultTimeouts are those of RFC 5321 §4.5.3.2, where it has one, except
// for the greeting (5 minutes there) and EHLO: a host that is slow already
// there is better left for the next one, as long as there is one: see Last.
var DefaultTimeouts = Timeouts{
	Connect:  30 * time.Second,
	Banner:   60 * time.Second,
	Hello:    60 * time.Second,
	StartTLS: 60 * time.Second,
	Mail:     5 * time.Minute,  // RFC 5321 §4.5.3.2.2
	Rcpt:     5 * time.Minute,  // RFC 5321 §4.5.3.2.3
	Data:     2 * time.Minute,  // RFC 5321 §4.5.3.2.4
	Block:    3 * time.Minute,  // RFC 5321 §4.5.3.2.5
	Dot:      10 * time.Minute, // RFC 5321 §4.5.3.2.6: shorter ones make duplicates
	Reset:    20 * time.Second, // what is lost is a connection without work
}

// lastHost is how long the last host of a route has for its greeting, and for
// EHLO: RFC 5321 §4.5.3.2.1.
const lastHost = 5 * time.Minute

// Last returns the timeouts for a host behind which there is no other one:
// where nothing else was said, it has the time that RFC 5321 gives it.
func (t Timeouts) Last() Timeouts {
	for _, v := range []struct {
		wait  *time.Duration
		usual time.Duration
	}{{&t.Banner, DefaultTimeouts.Banner}, {&t.Hello, DefaultTimeouts.Hello}} {
		if *v.wait == 0 || *v.wait == v.usual {
			*v.wait = lastHost
		}
	}
	return t
}
