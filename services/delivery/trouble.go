package delivery

import (
	"errors"
	"fmt"
	"io"
	"net"
	"regexp"
	"strings"
	"syscall"

	"github.com/postrider/postrider/pkg/mail"
	"github.com/postrider/postrider/pkg/smtp"
	"github.com/postrider/postrider/services/delivery/internal/smtpclient"
)

// This file is the failure policy of delivery, all of it: what an answer at a
// phase means for a recipient, how far the trouble reaches, and what to do
// next. It is pure, and total: every answer has a verdict.

// scope is how far trouble reaches.
type scope string

// The scopes, smallest first.
const (
	scopeRecipient   scope = "recipient"
	scopeTransaction scope = "transaction" // all recipients of this message at this host
	scopeSession     scope = "session"     // this connection; the host may be well
	scopeHost        scope = "host"        // this address: prefer others for a while
	scopeSite        scope = "site"        // no host of the route works
)

// move is what to do next for the recipient, before anything is settled.
type move string

// The moves.
const (
	moveSettle      move = "settle"       // the action stands
	moveSameSession move = "same session" // another transaction at once, for those left over
	moveNewSession  move = "new session"  // connect again to the same address
	moveSmallHello  move = "small hello"  // connect again to the same address with a smaller ClientHello
	movePlaintext   move = "plaintext"    // connect again to the same address without TLS
	moveNextHost    move = "next host"    // the next address of the route; a session that is still open is closed
)

// circumstances are all that a verdict depends on. For a failed Dial reused
// and accepted are false.
type circumstances struct {
	answer    smtpclient.Answer
	tls       mail.TLSLevel
	reused    bool // the session had served a transaction before
	accepted  bool // another recipient of the transaction was accepted
	last      bool // there is no other address to try in this attempt
	small     bool // the ClientHello was the small one
	mayPlain  bool // the mail is old enough, and TLS failed there in an earlier attempt
	plain     bool // the session is in plaintext, and the host offers STARTTLS
	pipelined bool // commands were sent ahead; the next session will not
}

// verdict is what is to be done. Action and Status stand if the move is
// moveSettle, or if the caller cannot make the move.
type verdict struct {
	action mail.Action
	status mail.EnhancedCode // its class agrees with the action
	scope  scope
	move   move
	// untried says that the trouble is ours: no attempt was made, and the
	// retry schedule does not advance.
	untried bool
}

// judge is the policy.
func judge(c circumstances) verdict {
	a := c.answer
	if a.Uncertain {
		// RFC 1047: the host may have the message. Nothing is tried at once;
		// the pause gives a slow host time to find the duplicate by itself.
		return delayed(a, scopeSession, moveSettle)
	}
	if perHost := errors.Is(a.Err, smtpclient.ErrNeedsRequireTLS) || errors.Is(a.Err, smtpclient.ErrTooLate); perHost && !c.last {
		// RFC 8689 §4.2.1: a host that does not support it is passed over. So
		// is one that is slower than RFC 2852 lets it be.
		return delayed(a, scopeTransaction, moveNextHost)
	}
	if v, ours := judgeOurs(a); ours {
		return v
	}
	switch a.Phase {
	case mail.PhaseConnect, mail.PhaseBanner, mail.PhaseHello:
		// RFC 5321 §5.1: the other addresses are tried. A 5yz says that this
		// host does not want us, not that the recipient does not exist, so it
		// is never permanent: another host, or this one tomorrow, may.
		return c.hostTrouble()
	case mail.PhaseStartTLS:
		return c.tlsTrouble()
	case mail.PhaseAuth:
		return c.authTrouble()
	case mail.PhaseMail, mail.PhaseRcpt, mail.PhaseData, mail.PhaseBody, mail.PhaseDot:
		return c.transactionTrouble()
	}
	return delayed(a, scopeTransaction, moveSettle)
}

// judgeOurs is the verdict on what did not come from the remote host.
func judgeOurs(a smtpclient.Answer) (verdict, bool) {
	fail := func(subject, detail uint16) (verdict, bool) {
		status := mail.EnhancedCode{Class: 5, Subject: subject, Detail: detail}
		return verdict{action: mail.Failed, status: status, scope: scopeTransaction, move: moveSettle}, true
	}
	err := a.Err
	switch {
	case errors.Is(err, smtpclient.ErrTooBig):
		return fail(3, 4) // RFC 1870 §6.1
	case errors.Is(err, smtpclient.ErrNeedsSMTPUTF8):
		return fail(6, 7) // RFC 6531 §3.5
	case errors.Is(err, smtpclient.ErrNeedsBinary), errors.Is(err, smtpclient.ErrNeeds8Bit):
		return fail(6, 3) // RFC 3463 §3.7: conversion required but not supported
	case errors.Is(err, smtpclient.ErrNeedsRequireTLS):
		return fail(7, 30) // RFC 8689 §4.2.1
	case errors.Is(err, smtpclient.ErrTooLate):
		return fail(4, 7) // RFC 2852 §4.1: delivery time expired
	case errors.Is(err, smtp.ErrBareNewline):
		return fail(6, 0) // RFC 3463 §3.7
	case errors.Is(err, smtpclient.ErrContent), errors.Is(err, smtpclient.ErrWithheld), errors.Is(err, smtpclient.ErrClosed),
		errors.Is(err, smtpclient.ErrStopped), isExhausted(err):
		v := delayed(a, scopeSession, moveSettle)
		v.untried = true
		return v, true
	}
	return verdict{}, false
}

// isExhausted reports whether this machine could not even try.
func isExhausted(err error) bool {
	for _, e := range []error{syscall.EMFILE, syscall.ENFILE, syscall.ENOBUFS, syscall.ENOMEM, syscall.EADDRNOTAVAIL} {
		if errors.Is(err, e) {
			return true
		}
	}
	return false
}

// hostTrouble: this address does not serve us now.
func (c circumstances) hostTrouble() verdict {
	if c.last {
		return delayed(c.answer, scopeSite, moveSettle)
	}
	return delayed(c.answer, scopeHost, moveNextHost)
}

// tlsTrouble: STARTTLS or its handshake failed.
func (c circumstances) tlsTrouble() verdict {
	err := c.answer.Err
	if errors.Is(err, smtpclient.ErrHandshake) && !errors.Is(err, smtpclient.ErrUntrusted) && !c.small {
		// A ClientHello of more than one packet is too much for some hosts. It
		// is no less secure without, for as long as there is no quantum
		// computer; in plaintext it is.
		return delayed(c.answer, scopeSession, moveSmallHello)
	}
	if errors.Is(err, errNoRequireTLS) && c.last {
		// RFC 8689 §4.2.1, §7: nobody whom the message may be given to.
		status := mail.EnhancedCode{Class: 5, Subject: 7, Detail: 30}
		return verdict{action: mail.Failed, status: status, scope: scopeTransaction, move: moveSettle}
	}
	opportunistic := c.tls == mail.TLSMay || c.tls == ""
	if opportunistic && c.mayPlain && c.answer.Reply.Code != 421 {
		// RFC 7435 §4: encryption is a bonus here, so its failure must not
		// stop the mail. But most failures pass, and who breaks one handshake
		// must not have it in plaintext for that: it waits a while, as in
		// Postfix.
		return delayed(c.answer, scopeSession, movePlaintext)
	}
	return c.hostTrouble()
}

// authTrouble: we could not prove who we are. That says nothing of the mail,
// which waits for the operator. A password that one host refuses is not tried
// at the next one: providers lock accounts for that.
func (c circumstances) authTrouble() verdict {
	a := c.answer
	if a.Reply.Permanent() || errors.Is(a.Err, smtpclient.ErrAuthUnverified) || errors.Is(a.Err, smtpclient.ErrAuthExchange) {
		return delayed(a, scopeSite, moveSettle)
	}
	return c.hostTrouble()
}

// transactionTrouble: the verdict once MAIL could be sent.
func (c circumstances) transactionTrouble() verdict {
	a := c.answer
	switch {
	case c.pipelined && refusesPipelining(a.Reply):
		return delayed(a, scopeSession, moveNewSession)
	case a.Err != nil, a.Reply.Code == 421:
		return c.sessionTrouble()
	case a.Reply.Code/100 == 2 && a.Phase == mail.PhaseDot:
		return verdict{action: mail.Relayed, status: statusOf(a, 2), scope: scopeRecipient, move: moveSettle}
	case a.Phase == mail.PhaseRcpt && tooManyRecipients(a.Reply):
		// RFC 5321 §4.5.3.1.10: send the rest in another transaction. With
		// none accepted that would go on for ever.
		v := delayed(a, scopeRecipient, moveSettle)
		v.status = mail.EnhancedCode{Class: 4, Subject: 5, Detail: 3}
		if c.accepted {
			v.move = moveSameSession
		}
		return v
	case a.Phase == mail.PhaseRcpt && c.accepted && a.Reply.Transient() && oneDomain.MatchString(a.Reply.Text()):
		return delayed(a, scopeRecipient, moveSameSession)
	case c.wantsTLS():
		// RFC 3207 §4: it speaks of the connection, and it was us who left TLS
		// out. Over TLS it will hear of the message.
		return delayed(a, scopeSession, moveSettle)
	case a.Reply.Permanent():
		return verdict{action: mail.Failed, status: statusOf(a, 5), scope: c.width(), move: moveSettle}
	case a.Reply.Transient() && a.Phase != mail.PhaseRcpt && statusOf(a, 4).Subject == 3:
		// RFC 3463 §3.4: X.3.X speaks of the host itself, such as a full
		// disk; another host may have room. Any other 4yz is about the
		// message or its sender, and to press it on the next host is what
		// greylisting and providers punish.
		if c.last || c.reused {
			return delayed(a, scopeHost, moveSettle)
		}
		return delayed(a, scopeHost, moveNextHost)
	}
	return delayed(a, c.width(), moveSettle)
}

// wantsTLS reports whether the host refuses because TLS was left out: RFC 3207
// §4 has 530 for that, RFC 5248 §2.4 X.7.10, and many hosts words alone.
func (c circumstances) wantsTLS() bool {
	r := c.answer.Reply
	if !c.plain || !r.Permanent() {
		return false
	}
	return r.Code == 530 && !aboutLogin.MatchString(r.Text()) || r.Enhanced.Subject == 7 && r.Enhanced.Detail == 10 || aboutTLS.MatchString(r.Text())
}

var (
	aboutTLS   = regexp.MustCompile(`(?i)\b(?:start)?tls\b|\bssl\b|\bencrypt|\bsecure (?:connection|channel|session)`)
	aboutLogin = regexp.MustCompile(`(?i)\bauth|\blog ?in\b`)
)

// sessionTrouble: the connection is lost in the middle of a transaction, or
// the host says 421, which is about the connection and not about the message
// (RFC 5321 §3.8).
func (c circumstances) sessionTrouble() verdict {
	stale := c.reused && (c.answer.Phase == mail.PhaseMail || c.answer.Reply.Code == 421)
	switch {
	case stale:
		// The host has only had enough of this connection.
		return delayed(c.answer, scopeSession, moveNewSession)
	case c.last:
		return delayed(c.answer, scopeSession, moveSettle)
	}
	return delayed(c.answer, scopeSession, moveNextHost)
}

// width is whom a reply concerns: RCPT speaks of one recipient, MAIL, DATA
// and the final dot of all that are left.
func (c circumstances) width() scope {
	if c.answer.Phase == mail.PhaseRcpt {
		return scopeRecipient
	}
	return scopeTransaction
}

// tooManyRecipients reports whether a reply to RCPT only bounds the number of
// recipients. RFC 5321 §4.5.3.1.10: 452, and 552 from old hosts. A bare 452
// is taken so; a bare 552 is a full mailbox unless its text says otherwise.
func tooManyRecipients(r mail.Reply) bool {
	if r.Enhanced.Subject == 5 && r.Enhanced.Detail == 3 {
		return true
	}
	switch r.Code {
	case 452:
		return r.Enhanced.IsZero()
	case 552:
		return strings.Contains(strings.ToLower(r.Text()), "too many recipients")
	}
	return false
}

// outOfSync is how hosts say that they do not take commands that are sent
// ahead: Exim's "554 SMTP synchronization error", Postfix's "Improper use of
// SMTP command pipelining".
var outOfSync = regexp.MustCompile(`(?i)\bsynchroni[sz]ation error|\bpipelin(?:e|ed|ing)\b`)

func refusesPipelining(r mail.Reply) bool {
	return (r.Transient() || r.Permanent()) && outOfSync.MatchString(r.Text())
}

// oneDomain is how hosts of many domains say that a transaction may have
// recipients of one of them only: Google's "multiple destination domains per
// transaction is unsupported".
var oneDomain = regexp.MustCompile(`(?i)\b(?:multiple|several|different|one|more than one|single|same) (?:\w+ )?domains?\b.{0,40}\b(?:transaction|session|message|at a time|connection)`)

func delayed(a smtpclient.Answer, s scope, m move) verdict {
	return verdict{action: mail.Delayed, status: statusOf(a, 4), scope: s, move: m}
}

// statusOf returns the enhanced code for an answer, in the class of the
// action: RFC 3464 §2.3.4 wants them to agree. Subject and detail are those
// of the reply if it has some, else made from code and phase (RFC 3463).
func statusOf(a smtpclient.Answer, class uint16) mail.EnhancedCode {
	status := mail.EnhancedCode{Class: class}
	switch {
	case a.Err != nil:
		status.Subject, status.Detail = errorStatus(a)
	case !a.Reply.Enhanced.IsZero():
		status.Subject, status.Detail = a.Reply.Enhanced.Subject, a.Reply.Enhanced.Detail
	default:
		status.Subject, status.Detail = codeStatus(a.Reply.Code, a.Phase)
	}
	return status
}

// errorStatus returns subject and detail where there is no reply.
func errorStatus(a smtpclient.Answer) (subject, detail uint16) {
	switch err := a.Err; {
	case errors.As(err, new(noSource)):
		return 4, 4 // RFC 3463 §3.5: unable to route
	case errors.Is(err, smtpclient.ErrNoTLS):
		return 7, 4 // RFC 3463 §3.8: security features not supported
	case errors.Is(err, smtpclient.ErrHandshake), errors.Is(err, errPolicy):
		return 7, 5 // cryptographic failure; Postfix has the same for DANE
	case errors.Is(err, errNoRequireTLS), errors.Is(err, smtpclient.ErrNeedsRequireTLS):
		return 7, 30 // RFC 8689 §7: REQUIRETLS support required
	case errors.Is(err, smtpclient.ErrAuthUnverified):
		return 7, 11 // RFC 4954 §6: encryption needed for the mechanism
	case errors.Is(err, smtpclient.ErrNoAuth):
		return 7, 4
	case errors.Is(err, smtpclient.ErrAuthExchange):
		return 7, 8
	case errors.Is(err, smtpclient.ErrTooLate):
		return 4, 7 // RFC 3463 §3.5: delivery time expired
	case errors.Is(err, smtp.ErrReply), errors.Is(err, smtpclient.ErrOutOfStep):
		return 5, 0 // RFC 3463 §3.6: undefined protocol status
	case errors.Is(err, smtpclient.ErrContent), errors.Is(err, smtpclient.ErrWithheld), errors.Is(err, smtpclient.ErrClosed),
		errors.Is(err, smtpclient.ErrStopped), isExhausted(err):
		return 3, 0 // RFC 3463 §3.4: our own system
	case a.Phase == mail.PhaseResolve:
		return 4, 3 // RFC 3463 §3.5: directory server failure
	case a.Phase == mail.PhaseConnect:
		return 4, 1 // no answer from host
	}
	return 4, 2 // bad connection
}

// codeStatus returns subject and detail for a reply without enhanced code, as
// far as the words of RFC 5321 §4.2.3 carry. 550 means so much that it says
// nothing of a mailbox: who reads 5.1.1 takes the address off a list.
func codeStatus(code int, phase mail.Phase) (subject, detail uint16) {
	switch code {
	case 0:
		return 4, 2
	case 421, 521:
		return 3, 2 // system not accepting network messages; RFC 7504 §4
	case 450:
		if phase == mail.PhaseRcpt {
			return 2, 0
		}
	case 451:
		return 0, 0 // local error, but in practice greylisting too
	case 452:
		if phase == mail.PhaseRcpt {
			return 5, 3
		}
		return 3, 1
	case 454, 530:
		return 7, 0 // RFC 4954 §6, RFC 3207 §4
	case 500:
		return 5, 2
	case 501, 504, 455, 555:
		return 5, 4
	case 502, 503:
		return 5, 1
	case 535:
		return 7, 8 // RFC 4954 §6
	case 551:
		return 1, 6
	case 552:
		if phase == mail.PhaseRcpt {
			return 2, 2
		}
		return 3, 4
	case 553:
		return 1, 3
	case 556:
		return 1, 10 // RFC 7504 §4, RFC 7505 §4.1
	}
	return 0, 0
}

// outcomeOf makes the outcome of one recipient of which the verdict is to be
// settled. NextAttemptAt is left to the caller.
func outcomeOf(p mail.Pending, a smtpclient.Answer, v verdict) mail.Outcome {
	reply := a.Reply
	if reply.Code == 0 {
		reply = mail.Reply{Lines: []string{explain(a)}}
	}
	return mail.Outcome{
		RecipientNo: p.No,
		Attempt:     p.Attempt,
		Action:      v.action,
		Status:      v.status,
		Reply:       reply,
		Phase:       a.Phase,
		Untried:     v.untried,
		Uncertain:   a.Uncertain,
	}
}

// explain says in words what happened when there is no reply to show.
func explain(a smtpclient.Answer) string {
	var network net.Error
	var ours noSource
	switch err := a.Err; {
	case errors.As(err, &ours):
		return ours.why
	case err == nil:
		return fmt.Sprintf("no reply at phase %s", a.Phase)
	case errors.As(err, &network) && network.Timeout() && !errors.Is(err, smtpclient.ErrStopped):
		return fmt.Sprintf("no answer in time at phase %s", a.Phase)
	case errors.Is(err, io.EOF), errors.Is(err, io.ErrUnexpectedEOF):
		return fmt.Sprintf("connection closed by the remote host at phase %s", a.Phase)
	default:
		return fmt.Sprintf("at phase %s: %v", a.Phase, err)
	}
}
