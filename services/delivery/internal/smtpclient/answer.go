package smtpclient

import (
	"errors"
	"net/netip"
	"time"

	"github.com/postrider/postrider/pkg/mail"
	"github.com/postrider/postrider/pkg/shaping"
)

// Answer is what a step of the dialogue came to: the reply of the remote
// host, or why there is none.
type Answer struct {
	Phase mail.Phase
	// Reply has a zero Code if there was none. With Err it is a reply that
	// makes no sense at this phase.
	Reply mail.Reply
	// Err is the reason if there is no reply to go by: one of the errors
	// below, a network error, io.EOF, or smtp.ErrReply.
	Err error
	// Uncertain says that the final dot left and no reply to it came: the
	// remote host may have taken the message (RFC 1047).
	Uncertain bool
	// Promised is what a host that took the message will report of it.
	Promised mail.Promise
	// Local is our end of the connection of a dial that failed behind
	// PhaseConnect.
	Local netip.AddrPort
}

// The reasons of our own in Answer.Err.
var (
	// ErrNoTLS says that the route demands TLS and the host does not offer
	// it, or refused STARTTLS (then Reply is there too).
	ErrNoTLS = errors.New("TLS is required but not available")
	// ErrHandshake wraps the failure of a TLS handshake, certificates that
	// did not verify included.
	ErrHandshake = errors.New("TLS handshake failed")
	// ErrUntrusted is inside ErrHandshake if the host speaks TLS well and has
	// not proved who it is.
	ErrUntrusted = errors.New("the host is not authenticated")
	// ErrOutOfStep says that a reply came unasked or is of a class that has
	// no meaning at its phase. The connection is given up.
	ErrOutOfStep = errors.New("reply out of step")
	// ErrTooBig says that the message is larger than the SIZE that the host
	// announced: RFC 1870 §6.1.
	ErrTooBig = errors.New("message is larger than the host accepts")
	// ErrNeedsSMTPUTF8 says that the host does not offer SMTPUTF8 and the
	// message needs it: RFC 6531 §3.2.
	ErrNeedsSMTPUTF8 = errors.New("message needs SMTPUTF8, which the host does not offer")
	// ErrNeedsBinary says that the content is binary, that the host does not
	// take it so (RFC 3030 §3), and that it is not to be, or cannot be,
	// converted.
	ErrNeedsBinary = errors.New("message needs BINARYMIME, which the host does not take")
	// ErrNeeds8Bit says the same of 8-bit content: RFC 6152 §3.
	ErrNeeds8Bit = errors.New("message needs 8BITMIME, which the host does not offer")
	// ErrNeedsRequireTLS says that the message demands REQUIRETLS and the
	// session is not verified TLS, or the host does not promise as much for
	// its own next hop: RFC 8689 §4.2.1.
	ErrNeedsRequireTLS = errors.New("message needs REQUIRETLS, which the host does not support over verified TLS")
	// ErrTooLate says that the message cannot be there by the time at which it
	// is to be returned: RFC 2852 §4.1.
	ErrTooLate = errors.New("message cannot be delivered in time")
	// ErrContent wraps a failure to read the content. It says nothing about
	// the remote host.
	ErrContent = errors.New("content cannot be read")
	// ErrWithheld wraps the error of Transaction.BeforeDot: the connection
	// was closed instead of sending the final dot.
	ErrWithheld = errors.New("final dot withheld")
	// ErrStopped wraps the cause for which the context of the call ended.
	ErrStopped = errors.New("stopped by us")
	// ErrClosed says that the session had ended before.
	ErrClosed = errors.New("session has ended")
)

// PhaseReset is the phase of a Step, never of an Answer: the reply to the RSET
// that the last transaction left to be sent.
const PhaseReset mail.Phase = "rset"

// Step tells an observer of one exchange as it ends: for spans and logs.
type Step struct {
	Phase mail.Phase
	Reply mail.Reply // zero Code if there was none
	Err   error
	Took  time.Duration // since the command, or the group that it was in, left
}

// Timeouts are the longest waits for each phase. A zero field means the
// default.
type Timeouts = shaping.Timeouts

// quitTimeout is how long QUIT may take to be written, and to be answered where
// that is waited for.
const quitTimeout = time.Second

// closeTimeout is how long a host may take from there to close the connection.
const closeTimeout = 100 * time.Millisecond

func orDefault(t Timeouts) Timeouts {
	d := shaping.DefaultTimeouts
	for _, f := range []struct{ to, from *time.Duration }{
		{&d.Connect, &t.Connect}, {&d.Banner, &t.Banner}, {&d.Hello, &t.Hello}, {&d.StartTLS, &t.StartTLS},
		{&d.Mail, &t.Mail}, {&d.Rcpt, &t.Rcpt}, {&d.Data, &t.Data}, {&d.Block, &t.Block}, {&d.Dot, &t.Dot}, {&d.Reset, &t.Reset},
	} {
		if *f.from > 0 {
			*f.to = *f.from
		}
	}
	return d
}
