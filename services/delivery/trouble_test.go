package delivery

import (
	"context"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"slices"
	"strings"
	"syscall"
	"testing"

	"github.com/postrider/postrider/pkg/mail"
	"github.com/postrider/postrider/pkg/smtp"
	"github.com/postrider/postrider/services/delivery/internal/smtpclient"
)

// said is the answer with a reply, such as "550 5.1.1 no such user".
func said(phase mail.Phase, text string) smtpclient.Answer {
	var r mail.Reply
	code, rest, _ := strings.Cut(text, " ")
	if _, err := fmt.Sscanf(code, "%d", &r.Code); err != nil {
		panic(err)
	}
	if word, more, _ := strings.Cut(rest, " "); word != "" {
		if enhanced, ok := smtp.ParseEnhancedCode(word); ok {
			r.Enhanced, rest = enhanced, more
		}
	}
	r.Lines = []string{rest}
	return smtpclient.Answer{Phase: phase, Reply: r}
}

// met is the answer with an error.
func met(phase mail.Phase, err error) smtpclient.Answer {
	return smtpclient.Answer{Phase: phase, Err: err}
}

func TestJudge(t *testing.T) {
	refused := &net.OpError{Op: "dial", Err: syscall.ECONNREFUSED}
	badCertificate := fmt.Errorf("%w: %w: %w", smtpclient.ErrHandshake, smtpclient.ErrUntrusted, x509.UnknownAuthorityError{})
	tests := []struct {
		name   string
		c      circumstances
		action mail.Action
		status string
		scope  scope
		move   move
	}{
		// RFC 5321 §5.1: hosts and addresses that do not answer are passed by.
		{"refused", circumstances{answer: met(mail.PhaseConnect, refused)}, mail.Delayed, "4.4.1", scopeHost, moveNextHost},
		{"refused, last", circumstances{answer: met(mail.PhaseConnect, refused), last: true}, mail.Delayed, "4.4.1", scopeSite, moveSettle},
		{"no answer, last", circumstances{answer: met(mail.PhaseConnect, os.ErrDeadlineExceeded), last: true}, mail.Delayed, "4.4.1", scopeSite, moveSettle},
		{"no route to host", circumstances{answer: met(mail.PhaseConnect, syscall.EHOSTUNREACH), last: true}, mail.Delayed, "4.4.1", scopeSite, moveSettle},
		// RFC 5321 §3.1: 554 instead of the greeting. It is the host's, not the recipient's.
		{"554 greeting", circumstances{answer: said(mail.PhaseBanner, "554 5.7.1 go away")}, mail.Delayed, "4.7.1", scopeHost, moveNextHost},
		{"554 greeting, last", circumstances{answer: said(mail.PhaseBanner, "554 5.7.1 go away"), last: true}, mail.Delayed, "4.7.1", scopeSite, moveSettle},
		{"521 greeting, last", circumstances{answer: said(mail.PhaseBanner, "521 no mail here"), last: true}, mail.Delayed, "4.3.2", scopeSite, moveSettle}, // RFC 7504 §3
		{"421 greeting", circumstances{answer: said(mail.PhaseBanner, "421 busy")}, mail.Delayed, "4.3.2", scopeHost, moveNextHost},
		{"no greeting", circumstances{answer: met(mail.PhaseBanner, io.EOF)}, mail.Delayed, "4.4.2", scopeHost, moveNextHost},
		{"not SMTP", circumstances{answer: met(mail.PhaseBanner, smtp.ErrReply)}, mail.Delayed, "4.5.0", scopeHost, moveNextHost},
		{"550 EHLO and HELO", circumstances{answer: said(mail.PhaseHello, "550 bad name"), last: true}, mail.Delayed, "4.0.0", scopeSite, moveSettle},
		{"450 EHLO", circumstances{answer: said(mail.PhaseHello, "450 4.7.1 not yet")}, mail.Delayed, "4.7.1", scopeHost, moveNextHost},

		// TLS: RFC 7435 §4 under may, fail closed under all else.
		{"handshake", circumstances{answer: met(mail.PhaseStartTLS, smtpclient.ErrHandshake), tls: mail.TLSMay, last: true}, mail.Delayed, "4.7.5", scopeSession, moveSmallHello},
		{"handshake, verify", circumstances{answer: met(mail.PhaseStartTLS, smtpclient.ErrHandshake), tls: mail.TLSVerify, last: true}, mail.Delayed, "4.7.5", scopeSession, moveSmallHello},
		{"small handshake, may", circumstances{answer: met(mail.PhaseStartTLS, smtpclient.ErrHandshake), tls: mail.TLSMay, small: true, last: true}, mail.Delayed, "4.7.5", scopeSite, moveSettle},
		{"small handshake, may, again after a while", circumstances{answer: met(mail.PhaseStartTLS, smtpclient.ErrHandshake), tls: mail.TLSMay, small: true, mayPlain: true, last: true}, mail.Delayed, "4.7.5", scopeSession, movePlaintext},
		{"small handshake, encrypt, again after a while", circumstances{answer: met(mail.PhaseStartTLS, smtpclient.ErrHandshake), tls: mail.TLSEncrypt, small: true, mayPlain: true}, mail.Delayed, "4.7.5", scopeHost, moveNextHost},
		{"454 at STARTTLS, may", circumstances{answer: said(mail.PhaseStartTLS, "454 4.7.0 not now"), tls: mail.TLSMay}, mail.Delayed, "4.7.0", scopeHost, moveNextHost},
		{"454 at STARTTLS, may, again after a while", circumstances{answer: said(mail.PhaseStartTLS, "454 4.7.0 not now"), tls: mail.TLSMay, mayPlain: true}, mail.Delayed, "4.7.0", scopeSession, movePlaintext},
		{"small handshake, dane", circumstances{answer: met(mail.PhaseStartTLS, smtpclient.ErrHandshake), tls: mail.TLSDANE, small: true, last: true}, mail.Delayed, "4.7.5", scopeSite, moveSettle},
		{"not authenticated", circumstances{answer: met(mail.PhaseStartTLS, fmt.Errorf("%w: %w", smtpclient.ErrHandshake, smtpclient.ErrUntrusted)), tls: mail.TLSDANE}, mail.Delayed, "4.7.5", scopeHost, moveNextHost},
		{"TLS stripped, dane", circumstances{answer: met(mail.PhaseStartTLS, smtpclient.ErrNoTLS), tls: mail.TLSDANE, last: true}, mail.Delayed, "4.7.4", scopeSite, moveSettle},
		{"TLSA not known", circumstances{answer: met(mail.PhaseStartTLS, errTLSAUnknown), tls: mail.TLSVerify, last: true}, mail.Delayed, "4.7.5", scopeSite, moveSettle},
		{"outside MTA-STS", circumstances{answer: met(mail.PhaseStartTLS, errOutsideSTS), tls: mail.TLSVerify}, mail.Delayed, "4.7.5", scopeHost, moveNextHost},
		{"REQUIRETLS, another host", circumstances{answer: met(mail.PhaseStartTLS, errNoRequireTLS), tls: mail.TLSVerify}, mail.Delayed, "4.7.30", scopeHost, moveNextHost},
		{"REQUIRETLS, no host", circumstances{answer: met(mail.PhaseStartTLS, errNoRequireTLS), tls: mail.TLSVerify, last: true}, mail.Failed, "5.7.30", scopeTransaction, moveSettle},
		{"drop at STARTTLS, may", circumstances{answer: met(mail.PhaseStartTLS, io.EOF), tls: mail.TLSMay}, mail.Delayed, "4.4.2", scopeHost, moveNextHost},
		{"drop at STARTTLS, may, again after a while", circumstances{answer: met(mail.PhaseStartTLS, io.EOF), tls: mail.TLSMay, mayPlain: true}, mail.Delayed, "4.4.2", scopeSession, movePlaintext},
		{"421 at STARTTLS, may", circumstances{answer: said(mail.PhaseStartTLS, "421 bye"), tls: mail.TLSMay, mayPlain: true}, mail.Delayed, "4.3.2", scopeHost, moveNextHost},
		{"small handshake, encrypt", circumstances{answer: met(mail.PhaseStartTLS, smtpclient.ErrHandshake), tls: mail.TLSEncrypt, small: true}, mail.Delayed, "4.7.5", scopeHost, moveNextHost},
		{"certificate, verify, last", circumstances{answer: met(mail.PhaseStartTLS, badCertificate), tls: mail.TLSVerify, last: true}, mail.Delayed, "4.7.5", scopeSite, moveSettle},
		{"not offered, encrypt", circumstances{answer: met(mail.PhaseStartTLS, smtpclient.ErrNoTLS), tls: mail.TLSEncrypt, last: true}, mail.Delayed, "4.7.4", scopeSite, moveSettle},
		{"STARTTLS refused for good, verify", circumstances{answer: with(said(mail.PhaseStartTLS, "502 5.5.1 what?"), smtpclient.ErrNoTLS), tls: mail.TLSVerify}, mail.Delayed, "4.7.4", scopeHost, moveNextHost},

		// RFC 5321 §4.2.1: 5yz at MAIL fails all recipients, 4yz delays them.
		{"550 MAIL", circumstances{answer: said(mail.PhaseMail, "550 5.7.1 sender refused")}, mail.Failed, "5.7.1", scopeTransaction, moveSettle},
		{"552 MAIL", circumstances{answer: said(mail.PhaseMail, "552 too big")}, mail.Failed, "5.3.4", scopeTransaction, moveSettle}, // RFC 1870 §6.1
		{"553 MAIL", circumstances{answer: said(mail.PhaseMail, "553 bad path")}, mail.Failed, "5.1.3", scopeTransaction, moveSettle},
		{"530 MAIL", circumstances{answer: said(mail.PhaseMail, "530 must issue STARTTLS")}, mail.Failed, "5.7.0", scopeTransaction, moveSettle}, // RFC 3207 §4
		{"530 MAIL, TLS left out", circumstances{answer: said(mail.PhaseMail, "530 5.7.0 Must issue a STARTTLS command first"), plain: true}, mail.Delayed, "4.7.0", scopeSession, moveSettle},
		{"530 RCPT, TLS left out, in other words", circumstances{answer: said(mail.PhaseRcpt, "530 no"), plain: true}, mail.Delayed, "4.7.0", scopeSession, moveSettle},
		{"530 MAIL, it is about a login", circumstances{answer: said(mail.PhaseMail, "530 5.7.1 Authentication required"), plain: true}, mail.Failed, "5.7.1", scopeTransaction, moveSettle},
		{"550 RCPT, TLS left out", circumstances{answer: said(mail.PhaseRcpt, "550 5.7.1 this domain takes mail over TLS only"), plain: true}, mail.Delayed, "4.7.1", scopeSession, moveSettle},
		{"5.7.10 MAIL, TLS left out", circumstances{answer: said(mail.PhaseMail, "554 5.7.10 needed"), plain: true}, mail.Delayed, "4.7.10", scopeSession, moveSettle},
		{"550 RCPT, encryption, over TLS", circumstances{answer: said(mail.PhaseRcpt, "550 5.7.1 encryption needed")}, mail.Failed, "5.7.1", scopeRecipient, moveSettle},
		{"550 RCPT, TLS left out, no such user", circumstances{answer: said(mail.PhaseRcpt, "550 5.1.1 no such user"), plain: true}, mail.Failed, "5.1.1", scopeRecipient, moveSettle},
		{"450 MAIL", circumstances{answer: said(mail.PhaseMail, "450 4.7.1 greylisted")}, mail.Delayed, "4.7.1", scopeTransaction, moveSettle},
		{"451 MAIL", circumstances{answer: said(mail.PhaseMail, "451 try later")}, mail.Delayed, "4.0.0", scopeTransaction, moveSettle},
		{"452 MAIL, disk full", circumstances{answer: said(mail.PhaseMail, "452 disk full")}, mail.Delayed, "4.3.1", scopeHost, moveNextHost},
		{"452 MAIL, disk full, last", circumstances{answer: said(mail.PhaseMail, "452 4.3.1 disk full"), last: true}, mail.Delayed, "4.3.1", scopeHost, moveSettle},
		{"452 MAIL, disk full, reused", circumstances{answer: said(mail.PhaseMail, "452 4.3.1 disk full"), reused: true}, mail.Delayed, "4.3.1", scopeHost, moveSettle},
		{"455 MAIL", circumstances{answer: said(mail.PhaseMail, "455 parameter")}, mail.Delayed, "4.5.4", scopeTransaction, moveSettle},

		// RFC 5321 §3.8: 421 is about the connection.
		{"421 MAIL, fresh", circumstances{answer: said(mail.PhaseMail, "421 4.7.0 too much")}, mail.Delayed, "4.7.0", scopeSession, moveNextHost},
		{"421 MAIL, reused", circumstances{answer: said(mail.PhaseMail, "421 4.4.2 idle"), reused: true, last: true}, mail.Delayed, "4.4.2", scopeSession, moveNewSession},
		{"421 RCPT, last", circumstances{answer: said(mail.PhaseRcpt, "421 bye"), last: true}, mail.Delayed, "4.3.2", scopeSession, moveSettle},
		{"421 dot, reused", circumstances{answer: said(mail.PhaseDot, "421 bye"), reused: true}, mail.Delayed, "4.3.2", scopeSession, moveNewSession},
		{"drop at MAIL, fresh", circumstances{answer: met(mail.PhaseMail, io.EOF)}, mail.Delayed, "4.4.2", scopeSession, moveNextHost},
		{"drop at MAIL, reused", circumstances{answer: met(mail.PhaseMail, syscall.EPIPE), reused: true}, mail.Delayed, "4.4.2", scopeSession, moveNewSession},
		{"drop at RCPT, reused", circumstances{answer: met(mail.PhaseRcpt, io.EOF), reused: true}, mail.Delayed, "4.4.2", scopeSession, moveNextHost},
		{"RSET refused", circumstances{answer: with(said(mail.PhaseMail, "503 no"), smtpclient.ErrOutOfStep), reused: true}, mail.Delayed, "4.5.0", scopeSession, moveNewSession},
		{"time out at DATA, last", circumstances{answer: met(mail.PhaseData, os.ErrDeadlineExceeded), last: true}, mail.Delayed, "4.4.2", scopeSession, moveSettle},
		{"250 to DATA", circumstances{answer: with(said(mail.PhaseData, "250 ok"), smtpclient.ErrOutOfStep)}, mail.Delayed, "4.5.0", scopeSession, moveNextHost},
		{"garbage at RCPT", circumstances{answer: met(mail.PhaseRcpt, smtp.ErrReply), last: true}, mail.Delayed, "4.5.0", scopeSession, moveSettle},
		{"RST in the content", circumstances{answer: met(mail.PhaseBody, syscall.ECONNRESET)}, mail.Delayed, "4.4.2", scopeSession, moveNextHost},

		// RCPT speaks of one recipient: RFC 5321 §3.3.
		{"550 RCPT", circumstances{answer: said(mail.PhaseRcpt, "550 5.1.1 no such user")}, mail.Failed, "5.1.1", scopeRecipient, moveSettle},
		{"bare 550 RCPT", circumstances{answer: said(mail.PhaseRcpt, "550 no")}, mail.Failed, "5.0.0", scopeRecipient, moveSettle},
		{"551 RCPT", circumstances{answer: said(mail.PhaseRcpt, "551 moved")}, mail.Failed, "5.1.6", scopeRecipient, moveSettle},
		{"556 RCPT", circumstances{answer: said(mail.PhaseRcpt, "556 no mail")}, mail.Failed, "5.1.10", scopeRecipient, moveSettle}, // RFC 7504 §4
		{"450 RCPT", circumstances{answer: said(mail.PhaseRcpt, "450 busy")}, mail.Delayed, "4.2.0", scopeRecipient, moveSettle},
		{"451 RCPT", circumstances{answer: said(mail.PhaseRcpt, "451 4.7.1 greylisted"), accepted: true}, mail.Delayed, "4.7.1", scopeRecipient, moveSettle},
		{"451 RCPT, look-up failed", circumstances{answer: said(mail.PhaseRcpt, "451 4.3.0 temporary lookup failure")}, mail.Delayed, "4.3.0", scopeRecipient, moveSettle},
		{"552 RCPT, mailbox full", circumstances{answer: said(mail.PhaseRcpt, "552 mailbox full"), accepted: true}, mail.Failed, "5.2.2", scopeRecipient, moveSettle},
		{"452 RCPT, mailbox full", circumstances{answer: said(mail.PhaseRcpt, "452 4.2.2 mailbox full"), accepted: true}, mail.Delayed, "4.2.2", scopeRecipient, moveSettle},
		// RFC 5321 §4.5.3.1.10: too many recipients, in all its forms.
		{"452 4.5.3", circumstances{answer: said(mail.PhaseRcpt, "452 4.5.3 enough"), accepted: true}, mail.Delayed, "4.5.3", scopeRecipient, moveSameSession},
		{"452", circumstances{answer: said(mail.PhaseRcpt, "452 enough"), accepted: true, last: true}, mail.Delayed, "4.5.3", scopeRecipient, moveSameSession},
		{"552 too many", circumstances{answer: said(mail.PhaseRcpt, "552 Too many recipients"), accepted: true}, mail.Delayed, "4.5.3", scopeRecipient, moveSameSession},
		{"552 5.5.3", circumstances{answer: said(mail.PhaseRcpt, "552 5.5.3 enough"), accepted: true}, mail.Delayed, "4.5.3", scopeRecipient, moveSameSession},
		{"another domain", circumstances{answer: said(mail.PhaseRcpt, "451 4.3.0 Multiple destination domains per transaction is unsupported. Please try again."), accepted: true}, mail.Delayed, "4.3.0", scopeRecipient, moveSameSession},
		{"another domain, none accepted", circumstances{answer: said(mail.PhaseRcpt, "451 4.3.0 Several destination domains in one transaction are not supported here.")}, mail.Delayed, "4.3.0", scopeRecipient, moveSettle},
		{"another domain in other words", circumstances{answer: said(mail.PhaseRcpt, "450 4.5.0 only one domain at a time"), accepted: true}, mail.Delayed, "4.5.0", scopeRecipient, moveSameSession},
		{"one domain, else", circumstances{answer: said(mail.PhaseRcpt, "451 4.7.1 too much mail from your domain"), accepted: true}, mail.Delayed, "4.7.1", scopeRecipient, moveSettle},
		{"synchronization", circumstances{answer: said(mail.PhaseMail, "554 5.5.0 SMTP synchronization error"), pipelined: true}, mail.Delayed, "4.5.0", scopeSession, moveNewSession},
		{"synchronization, one command at a time", circumstances{answer: said(mail.PhaseMail, "554 5.5.0 SMTP synchronization error")}, mail.Failed, "5.5.0", scopeTransaction, moveSettle},
		{"improper pipelining", circumstances{answer: said(mail.PhaseData, "503 5.5.0 <DATA>: Data command rejected: Improper use of SMTP command pipelining"), pipelined: true}, mail.Delayed, "4.5.0", scopeSession, moveNewSession},
		{"no user, pipelined", circumstances{answer: said(mail.PhaseRcpt, "550 5.1.1 no such user"), pipelined: true}, mail.Failed, "5.1.1", scopeRecipient, moveSettle},
		{"452 4.5.3, none accepted", circumstances{answer: said(mail.PhaseRcpt, "452 4.5.3 enough")}, mail.Delayed, "4.5.3", scopeRecipient, moveSettle},

		// DATA and the final dot speak of all recipients that were accepted.
		{"554 DATA", circumstances{answer: said(mail.PhaseData, "554 5.5.1 no valid recipients")}, mail.Failed, "5.5.1", scopeTransaction, moveSettle},
		{"451 DATA", circumstances{answer: said(mail.PhaseData, "451 4.7.1 no")}, mail.Delayed, "4.7.1", scopeTransaction, moveSettle},
		{"552 in the content", circumstances{answer: said(mail.PhaseBody, "552 5.3.4 too big")}, mail.Failed, "5.3.4", scopeTransaction, moveSettle},
		{"250 dot", circumstances{answer: said(mail.PhaseDot, "250 2.0.0 queued")}, mail.Relayed, "2.0.0", scopeRecipient, moveSettle},
		{"bare 250 dot", circumstances{answer: said(mail.PhaseDot, "250 queued")}, mail.Relayed, "2.0.0", scopeRecipient, moveSettle},
		{"251 dot", circumstances{answer: said(mail.PhaseDot, "251 2.1.5 ok")}, mail.Relayed, "2.1.5", scopeRecipient, moveSettle},
		{"554 dot", circumstances{answer: said(mail.PhaseDot, "554 5.7.1 spam")}, mail.Failed, "5.7.1", scopeTransaction, moveSettle},
		{"bare 554 dot", circumstances{answer: said(mail.PhaseDot, "554 spam")}, mail.Failed, "5.0.0", scopeTransaction, moveSettle},
		{"451 dot", circumstances{answer: said(mail.PhaseDot, "451 4.7.0 rate")}, mail.Delayed, "4.7.0", scopeTransaction, moveSettle},
		{"452 dot", circumstances{answer: said(mail.PhaseDot, "452 disk full")}, mail.Delayed, "4.3.1", scopeHost, moveNextHost},
		// RFC 1047: never at once to anybody.
		{"no reply to the dot", circumstances{answer: uncertain(io.EOF)}, mail.Delayed, "4.4.2", scopeSession, moveSettle},
		{"garbage to the dot, reused", circumstances{answer: uncertain(smtp.ErrReply), reused: true}, mail.Delayed, "4.5.0", scopeSession, moveSettle},
		{"stopped after the dot", circumstances{answer: uncertain(smtpclient.ErrStopped)}, mail.Delayed, "4.3.0", scopeSession, moveSettle},

		// AUTH: the mail waits for the operator, and the password stays here.
		{"535 AUTH", circumstances{answer: said(mail.PhaseAuth, "535 5.7.8 no")}, mail.Delayed, "4.7.8", scopeSite, moveSettle}, // RFC 4954 §6
		{"bare 535 AUTH", circumstances{answer: said(mail.PhaseAuth, "535 no")}, mail.Delayed, "4.7.8", scopeSite, moveSettle},
		{"534 AUTH", circumstances{answer: said(mail.PhaseAuth, "534 5.7.9 too weak")}, mail.Delayed, "4.7.9", scopeSite, moveSettle},
		{"454 AUTH", circumstances{answer: said(mail.PhaseAuth, "454 4.7.0 later")}, mail.Delayed, "4.7.0", scopeHost, moveNextHost},
		{"421 AUTH, last", circumstances{answer: said(mail.PhaseAuth, "421 busy"), last: true}, mail.Delayed, "4.3.2", scopeSite, moveSettle},
		{"AUTH, connection lost", circumstances{answer: met(mail.PhaseAuth, io.EOF)}, mail.Delayed, "4.4.2", scopeHost, moveNextHost},
		{"AUTH, not verified", circumstances{answer: met(mail.PhaseAuth, smtpclient.ErrAuthUnverified)}, mail.Delayed, "4.7.11", scopeSite, moveSettle},
		{"AUTH, host proves nothing", circumstances{answer: met(mail.PhaseAuth, smtpclient.ErrAuthExchange)}, mail.Delayed, "4.7.8", scopeSite, moveSettle},
		{"AUTH, no mechanism", circumstances{answer: met(mail.PhaseAuth, smtpclient.ErrNoAuth)}, mail.Delayed, "4.7.4", scopeHost, moveNextHost},

		// What one host cannot do another may.
		{"too late for this host", circumstances{answer: met(mail.PhaseMail, smtpclient.ErrTooLate)}, mail.Delayed, "4.4.7", scopeTransaction, moveNextHost}, // RFC 2852 §4.1
		{"too late", circumstances{answer: met(mail.PhaseMail, smtpclient.ErrTooLate), last: true}, mail.Failed, "5.4.7", scopeTransaction, moveSettle},
		{"REQUIRETLS, not here", circumstances{answer: met(mail.PhaseMail, smtpclient.ErrNeedsRequireTLS)}, mail.Delayed, "4.7.30", scopeTransaction, moveNextHost}, // RFC 8689 §4.2.1
		{"REQUIRETLS", circumstances{answer: met(mail.PhaseMail, smtpclient.ErrNeedsRequireTLS), last: true}, mail.Failed, "5.7.30", scopeTransaction, moveSettle},
		{"REQUIRETLS, nobody vouches for the host, last", circumstances{answer: met(mail.PhaseStartTLS, errNoRequireTLS), tls: mail.TLSVerify, last: true}, mail.Failed, "5.7.30", scopeTransaction, moveSettle},
		{"MTA-STS does not name the host", circumstances{answer: met(mail.PhaseStartTLS, errPolicy), tls: mail.TLSVerify, last: true}, mail.Delayed, "4.7.5", scopeSite, moveSettle},

		// What the host was not asked.
		{"8-bit", circumstances{answer: met(mail.PhaseMail, smtpclient.ErrNeeds8Bit)}, mail.Failed, "5.6.3", scopeTransaction, moveSettle},              // RFC 6152 §3
		{"too big", circumstances{answer: met(mail.PhaseMail, smtpclient.ErrTooBig)}, mail.Failed, "5.3.4", scopeTransaction, moveSettle},               // RFC 1870 §6.1
		{"SMTPUTF8", circumstances{answer: met(mail.PhaseMail, smtpclient.ErrNeedsSMTPUTF8)}, mail.Failed, "5.6.7", scopeTransaction, moveSettle},       // RFC 6531 §3.5
		{"binary", circumstances{answer: met(mail.PhaseMail, smtpclient.ErrNeedsBinary)}, mail.Failed, "5.6.3", scopeTransaction, moveSettle},           // RFC 3030 §3
		{"content is no mail", circumstances{answer: met(mail.PhaseBody, smtp.ErrBareNewline)}, mail.Failed, "5.6.0", scopeTransaction, moveSettle},     // RFC 5321 §2.3.8
		{"not judged here", circumstances{answer: met(mail.PhaseResolve, errors.New("SERVFAIL"))}, mail.Delayed, "4.4.3", scopeTransaction, moveSettle}, // RFC 3463 §3.5
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			got := judge(tt.c)
			if got.action != tt.action || got.status.String() != tt.status || got.scope != tt.scope || got.move != tt.move {
				t.Errorf("got %s %s, %s, %s\nwant %s %s, %s, %s", got.action, got.status, got.scope, got.move, tt.action, tt.status, tt.scope, tt.move)
			}
			if got.untried {
				t.Error("an attempt was made")
			}
		})
	}
}

func with(a smtpclient.Answer, err error) smtpclient.Answer {
	a.Err = err
	return a
}

func uncertain(err error) smtpclient.Answer {
	return smtpclient.Answer{Phase: mail.PhaseDot, Err: err, Uncertain: true}
}

// TestOurOwnTroubleIsNoAttempt: it must not cost a recipient one of its tries,
// nor the host its name.
func TestOurOwnTroubleIsNoAttempt(t *testing.T) {
	stopped := fmt.Errorf("%w: %w", smtpclient.ErrStopped, context.Canceled)
	for _, err := range []error{
		stopped, smtpclient.ErrWithheld, smtpclient.ErrContent, smtpclient.ErrClosed,
		&net.OpError{Op: "dial", Err: os.NewSyscallError("socket", syscall.EMFILE)}, syscall.EADDRNOTAVAIL,
	} {
		for _, phase := range allPhases {
			v := judge(circumstances{answer: met(phase, err), last: true, reused: true, tls: mail.TLSMay})
			if !v.untried || v.action != mail.Delayed || v.scope != scopeSession || v.move != moveSettle || v.status.String() != "4.3.0" {
				t.Errorf("%v at %s: %+v", err, phase, v)
			}
		}
	}
}

var allPhases = []mail.Phase{
	mail.PhaseResolve, mail.PhaseConnect, mail.PhaseBanner, mail.PhaseHello, mail.PhaseStartTLS, mail.PhaseAuth, mail.PhaseMail,
	mail.PhaseRcpt, mail.PhaseData, mail.PhaseBody, mail.PhaseDot, mail.PhaseQueue, "",
}

// TestJudgeIsTotal asks about every combination there is, and holds the
// verdicts to the rules that none may break.
func TestJudgeIsTotal(t *testing.T) {
	var answers []smtpclient.Answer
	for _, phase := range allPhases {
		for code := 0; code <= 599; code++ {
			for _, enhanced := range []mail.EnhancedCode{{}, {Class: 2, Subject: 1, Detail: 5}, {Class: 4, Subject: 3, Detail: 1}, {Class: 5, Subject: 5, Detail: 3}} {
				if enhanced.IsZero() || int(enhanced.Class) == code/100 {
					answers = append(answers, smtpclient.Answer{Phase: phase, Reply: mail.Reply{Code: code, Enhanced: enhanced}})
				}
			}
		}
		for _, err := range []error{io.EOF, smtp.ErrReply, smtpclient.ErrStopped, smtpclient.ErrTooBig, smtpclient.ErrOutOfStep, smtpclient.ErrHandshake, smtpclient.ErrNoTLS, smtpclient.ErrUntrusted,
			smtpclient.ErrTooLate, smtpclient.ErrNeeds8Bit, smtpclient.ErrNeedsBinary, smtpclient.ErrNeedsSMTPUTF8, smtpclient.ErrNeedsRequireTLS,
			smtpclient.ErrAuthUnverified, smtpclient.ErrNoAuth, smtpclient.ErrAuthExchange, errNoRequireTLS, errPolicy, errors.New("unheard of")} {
			answers = append(answers, met(phase, err), smtpclient.Answer{Phase: phase, Err: err, Uncertain: true})
		}
	}
	classOf := map[mail.Action]uint16{mail.Relayed: 2, mail.Delayed: 4, mail.Failed: 5}
	for _, a := range answers {
		for flags := range 128 {
			c := circumstances{answer: a, reused: flags&1 != 0, accepted: flags&2 != 0, last: flags&4 != 0, tls: mail.TLSLevels[flags>>3&3], mayPlain: flags&32 != 0, plain: flags&64 != 0}
			v := judge(c)
			name := fmt.Sprintf("%+v: %+v", c, v)
			if class, known := classOf[v.action]; !known || v.status.Class != class {
				t.Fatalf("action and status do not agree: %s", name)
			}
			if v.scope == "" || v.move == "" {
				t.Fatalf("half a verdict: %s", name)
			}
			if v.action == mail.Relayed && (a.Phase != mail.PhaseDot || a.Reply.Code/100 != 2 || a.Err != nil) {
				t.Fatalf("relayed without a 2yz to the final dot: %s", name)
			}
			if v.action == mail.Failed && a.Err == nil && a.Reply.Code/100 != 5 {
				t.Fatalf("failed without a 5yz: %s", name)
			}
			if v.action != mail.Delayed && v.move != moveSettle {
				t.Fatalf("final, yet not settled: %s", name)
			}
			if c.last && v.move == moveNextHost {
				t.Fatalf("there is no next host: %s", name)
			}
			if a.Uncertain && (v.move != moveSettle || v.untried || v.action == mail.Failed) {
				t.Fatalf("uncertain, and not left to rest: %s", name)
			}
			if v.move == movePlaintext && (c.tls != mail.TLSMay || !c.mayPlain) {
				t.Fatalf("downgrade: %s", name)
			}
			answered := a.Err == nil && a.Reply.Code != 421 && a.Reply.Code != 0 && slices.Contains([]mail.Phase{mail.PhaseMail, mail.PhaseRcpt, mail.PhaseData, mail.PhaseBody, mail.PhaseDot}, a.Phase)
			if answered && v.move == moveNextHost && (c.reused || v.scope != scopeHost) {
				t.Fatalf("the session is open, and the host not named: %s", name)
			}
			if v.move == moveNewSession && !c.reused && !c.pipelined || v.move == moveSameSession && !c.accepted {
				t.Fatalf("could go on for ever: %s", name)
			}
			if o := outcomeOf(mail.Pending{}, a, v); o.Action != v.action || o.Reply.Code == 0 && len(o.Reply.Lines) != 1 {
				t.Fatalf("outcome %+v of %s", o, name)
			}
		}
	}
}

func TestOutcomeTellsWhatHappened(t *testing.T) {
	p := mail.Pending{Recipient: mail.Recipient{No: 7}, Attempt: 3}
	for _, tt := range []struct {
		a    smtpclient.Answer
		want string
	}{
		{said(mail.PhaseRcpt, "550 5.1.1 no such user"), "550 5.1.1 no such user"},
		{met(mail.PhaseMail, os.ErrDeadlineExceeded), "0 no answer in time at phase mail"},
		{met(mail.PhaseBanner, io.EOF), "0 connection closed by the remote host at phase banner"},
		{met(mail.PhaseMail, smtpclient.ErrTooBig), "0 at phase mail: message is larger than the host accepts"},
		{met(mail.PhaseData, nil), "0 no reply at phase data"},
	} {
		o := outcomeOf(p, tt.a, judge(circumstances{answer: tt.a}))
		if o.Reply.String() != tt.want || o.RecipientNo != 7 || o.Attempt != 3 || o.Phase != tt.a.Phase {
			t.Errorf("outcome %+v, reply %q", o, o.Reply)
		}
	}
}
