package smtpclient

import (
	"context"
	"errors"
	"io"
	"os"
	"time"

	"github.com/postrider/postrider/pkg/mail"
	"github.com/postrider/postrider/pkg/smtp"
	"github.com/postrider/postrider/services/delivery/internal/sevenbit"
)

// maxGroup is how many commands leave before the replies to them are read.
// RFC 2920 §3.1: a client must not fill both windows; so many replies fit
// into the smallest.
const maxGroup = 100

// Transaction is one message for some recipients.
type Transaction struct {
	Message    *mail.Message
	Recipients []mail.Pending // at least one
	// Content is the whole content; if it is nil, Open is called after the
	// 354 and the content is streamed from it. A final CRLF that is missing
	// is added: DATA cannot do without.
	Content []byte
	Open    func() (io.ReadCloser, error)
	// Conversion says what becomes of 8-bit content for a 7-bit host; "" is
	// ConvertAlways.
	Conversion Conversion
	// BeforeDot is called when all but the final dot has been written or
	// lies in the buffer: the last moment at which the transaction can be
	// given up without the chance of a duplicate. An error closes the
	// connection without the dot. May be nil.
	BeforeDot func() error
	// BeforeAgain is called before each further MAIL for the same message,
	// which a host may have a limit for; may be nil.
	BeforeAgain func()
	// Observe is called for each reply; may be nil.
	Observe func(Step)
}

func (t *Transaction) beforeAgain() {
	if t.BeforeAgain != nil {
		t.BeforeAgain()
	}
}

// Result is what came of a transaction.
type Result struct {
	Answers  []Answer // one for each recipient, in their order
	Accepted int      // recipients whose RCPT was accepted, whatever came later
	MailSent bool     // the host may have seen MAIL
}

// sending is a transaction under way.
type sending struct {
	*Session
	ctx context.Context
	t   *Transaction
	Result
	eightBit    bool           // the content is, or may be, 8-bit
	binary      bool           // it goes as BINARYMIME
	converting  bool           // it is made 7-bit as it is streamed
	plan        *sevenbit.Plan // of the content, once it was looked at
	mailRefused bool
}

// Send carries out one transaction. It always returns one Answer for each
// recipient: of PhaseRcpt if it was refused there, else that of the phase at
// which all ended; a positive Reply at PhaseDot is the only success. When the
// context ends the connection is closed.
//
// A host that offers an extension and then refuses its parameters sees another
// transaction without them; a host without BDAT that works, one with DATA.
//
// After Send look at Usable: a broken connection, a 421 and a reply out of
// step end the session. An RSET that is needed goes out with the next
// transaction.
func (s *Session) Send(ctx context.Context, t Transaction) Result {
	x := sending{Session: s, ctx: ctx, t: &t, Result: Result{Answers: make([]Answer, len(t.Recipients))}}
	if err := x.check(); err != nil {
		x.all(Answer{Phase: mail.PhaseMail, Err: err})
		return x.Result
	}
	x.carryOut()
	if !x.over {
		x.withoutParameters(t)
	}
	return x.Result
}

func (x *sending) carryOut() {
	x.observe = x.t.Observe
	release := x.bind(x.ctx)
	x.used++
	switch {
	case x.used > 1 && (x.r.Buffered() > 0 || unasked(x.tcp)):
		x.spokeUp(mail.PhaseMail)
	case x.envelope():
		x.content()
	}
	x.observe = nil
	if release() != nil || x.over {
		x.abort()
	}
	for i := range x.Answers {
		if a := &x.Answers[i]; a.Phase == mail.PhaseDot && a.Reply.Positive() {
			a.Promised = mail.Promise{DSN: x.offers.dsn, DeliverBy: x.offers.deliverBy}
		}
	}
}

// The commands of a transaction by number: RSET, MAIL, RCPT for each
// recipient, DATA or BDAT.
const (
	commandReset = iota
	commandMail
	commandRcpt // the first
)

// envelope sends the commands in groups and reads their replies. It reports
// whether the content is to follow.
func (x *sending) envelope() bool {
	next := commandMail
	if x.owesReset {
		next = commandReset
	}
	x.owesReset = true
	data := commandRcpt + len(x.t.Recipients)
	for next <= data && !x.over && !x.mailRefused {
		if next == data && x.byChunk() && x.chunks {
			return x.Accepted > 0 // the chunk needs no leave
		}
		first := next
		x.command = x.command[:0]
		for next <= data && (next == first || x.offers.pipelining && next-first < maxGroup && !(next == data && x.byChunk() && x.chunks)) {
			if next == data && next == first && x.Accepted == 0 {
				return false // no one to send it to
			}
			x.append(next)
			next++
		}
		x.MailSent = x.MailSent || next > commandMail
		if err := x.flushCommands(x.timeouts.Block); err != nil {
			phase, _ := x.step(max(first, commandMail))
			x.hungUp(phase, err)
			return false
		}
		for i := first; i < next && !x.over; i++ {
			if i == commandReset {
				x.answerReset()
			} else if x.answer(i) {
				return true
			}
		}
	}
	return false
}

func (x *sending) append(command int) {
	switch {
	case command == commandReset:
		x.command = append(x.command, "RSET\r\n"...)
	case command == commandMail:
		x.command = smtp.AppendMail(x.command, x.mailArgs())
	case command < commandRcpt+len(x.t.Recipients):
		p := &x.t.Recipients[command-commandRcpt]
		r := smtp.RcptArgs{ForwardPath: p.ForwardPath}
		if x.offers.dsn {
			r.Notify, r.ORCPT = p.Notify, p.ORCPT
		}
		x.command = smtp.AppendRcpt(x.command, r)
	case x.byChunk():
		// An empty chunk shows that BDAT works, before any content can be
		// taken for commands by a host that only says so.
		x.command = append(x.command, "BDAT 0\r\n"...)
	default:
		x.command = append(x.command, "DATA\r\n"...)
	}
}

// step returns the phase of a command and how long its reply may take.
func (x *sending) step(command int) (mail.Phase, time.Duration) {
	switch {
	case command == commandMail:
		return mail.PhaseMail, x.timeouts.Mail
	case command < commandRcpt+len(x.t.Recipients):
		return mail.PhaseRcpt, x.timeouts.Rcpt
	}
	return mail.PhaseData, x.timeouts.Data
}

// answerReset reads the reply to RSET. A refusal says nothing of the message
// that is about to be sent, only that the session is of no use.
func (x *sending) answerReset() {
	reply, err := x.await(PhaseReset, x.timeouts.Reset)
	switch {
	case err != nil:
		x.broke(mail.PhaseMail, err)
	case reply.Code == 421:
		x.end(Answer{Phase: mail.PhaseMail, Reply: reply})
	case reply.Code/100 != 2:
		x.end(Answer{Phase: mail.PhaseMail, Reply: reply, Err: ErrOutOfStep})
	}
}

// answer reads the reply to a command from MAIL on. It reports whether the content is to
// follow.
func (x *sending) answer(command int) bool {
	phase, timeout := x.step(command)
	reply, err := x.await(phase, timeout)
	wantClass, chunk := 2, phase == mail.PhaseData && x.byChunk()
	if phase == mail.PhaseData && !chunk {
		wantClass = 3
	}
	class := reply.Code / 100
	switch {
	case err != nil:
		x.broke(phase, err)
	case chunk && class == 2:
		x.chunks = true
		return x.Accepted > 0
	case chunk && class == 5 && x.Accepted > 0 && !x.mailRefused:
		return x.withoutChunks()
	case reply.Code == 421:
		// RFC 5321 §3.8: the host closes the connection, at any point.
		x.end(Answer{Phase: phase, Reply: reply})
	case class == 2 && phase == mail.PhaseData || class == 3 && (phase != mail.PhaseData || chunk):
		x.end(Answer{Phase: phase, Reply: reply, Err: ErrOutOfStep})
	case phase == mail.PhaseMail && class != wantClass:
		x.mailRefused = true
		x.all(Answer{Phase: phase, Reply: reply})
	case phase == mail.PhaseRcpt && class == wantClass && !x.mailRefused:
		x.Accepted++
	case phase == mail.PhaseRcpt && !x.mailRefused:
		x.Answers[command-commandRcpt] = Answer{Phase: phase, Reply: reply}
	case phase == mail.PhaseData && class == wantClass && x.Accepted == 0:
		x.nothing()
	case phase == mail.PhaseData && class == wantClass:
		return true
	case phase == mail.PhaseData:
		x.all(Answer{Phase: phase, Reply: reply})
	}
	return false
}

// withoutChunks begins the transaction anew, with RSET and for DATA, at a host
// that offers CHUNKING and refuses BDAT: RFC 3030 §2, no DATA behind BDAT. It reports whether the content is to follow.
func (x *sending) withoutChunks() bool {
	x.offers.chunking, x.offers.binary = false, false
	if x.binary {
		if err := x.check(); err != nil {
			x.all(Answer{Phase: mail.PhaseData, Err: err})
			return false
		}
	}
	clear(x.Answers)
	x.Accepted = 0
	x.t.beforeAgain()
	return x.envelope()
}

// nothing ends the data of a host that said 354 though it refused MAIL or
// all recipients, and reads its refusal: RFC 2920 §3.1.
func (x *sending) nothing() {
	x.command = append(x.command[:0], ".\r\n"...)
	err := x.flushCommands(x.timeouts.Block)
	if x.lmtp {
		x.over = true // RFC 2033 §4.2: as many replies as recipients, which is none
		return
	}
	if err == nil {
		_, err = x.await(mail.PhaseDot, x.timeouts.Dot)
	}
	if err != nil {
		x.over = true
	}
}

// spokeUp ends a session whose host has said something that nobody asked for:
// mostly that it will close. It is no answer to what we are about to say, and
// from there on every reply would be taken for that to another command.
func (x *sending) spokeUp(phase mail.Phase) {
	a := Answer{Phase: phase, Err: ErrOutOfStep}
	if a.Reply, _ = x.lastWords(nil); a.Reply.Code == 421 {
		a.Err = nil // RFC 5321 §3.8: that may come at any time
	}
	x.end(a)
}

// broke ends the session after a read failed: for the recipients without an
// answer that is the answer.
func (x *sending) broke(phase mail.Phase, err error) {
	x.end(Answer{Phase: phase, Err: fault(x.ctx, err)})
}

// hungUp ends the session after a write failed or was given up.
func (x *sending) hungUp(phase mail.Phase, err error) {
	switch {
	case isOurs(err):
		x.broke(phase, err)
		return
	case errors.Is(err, ErrOutOfStep):
		x.spokeUp(phase)
		return
	}
	if errors.Is(err, os.ErrDeadlineExceeded) {
		// What such a host does not read would stay in the kernel for minutes.
		x.dropUnsent()
	}
	reply, err := x.lastWords(err)
	x.end(Answer{Phase: phase, Reply: reply, Err: fault(x.ctx, err)})
}

// end gives the answer to all who have none and ends the session.
func (x *sending) end(a Answer) {
	x.over = true
	x.all(a)
}

// all gives the answer to all who have none.
func (x *sending) all(a Answer) {
	for i := range x.Answers {
		if x.Answers[i].Phase == "" {
			x.Answers[i] = a
		}
	}
}

// ascii reports whether no octet is over 127. Content is looked at whole, so
// eight octets at a time.
func ascii[S ~string | ~[]byte](s S) bool {
	const high = 0x8080808080808080
	i := 0
	for ; i+8 <= len(s); i += 8 {
		eight := uint64(s[i]) | uint64(s[i+1])<<8 | uint64(s[i+2])<<16 | uint64(s[i+3])<<24 |
			uint64(s[i+4])<<32 | uint64(s[i+5])<<40 | uint64(s[i+6])<<48 | uint64(s[i+7])<<56
		if eight&high != 0 {
			return false
		}
	}
	for ; i < len(s); i++ {
		if s[i] >= 0x80 {
			return false
		}
	}
	return true
}
