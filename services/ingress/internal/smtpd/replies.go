package smtpd

import (
	"errors"

	"github.com/postrider/postrider/pkg/mail"
	"github.com/postrider/postrider/pkg/smtp"
	"github.com/postrider/postrider/services/ingress/internal/submission"
)

// say makes a reply of one line. The enhanced code has the class of the code:
// RFC 3463 §2.
func say(code int, subject, detail uint16, text string) mail.Reply {
	return mail.Reply{
		Code:     code,
		Enhanced: mail.EnhancedCode{Class: uint16(code / 100), Subject: subject, Detail: detail},
		Lines:    []string{text},
	}
}

// The replies that do not depend on the session: RFC 5321 §4.2, RFC 3463.
var (
	replyReset     = say(250, 0, 0, "OK")
	replyNoop      = say(250, 0, 0, "OK")
	replySender    = say(250, 1, 0, "reverse-path OK")
	replyRecipient = say(250, 1, 5, "forward-path OK")
	replyGoAhead   = mail.Reply{Code: 354, Lines: []string{"end data with <CR><LF>.<CR><LF>"}}
	replyBye       = say(221, 0, 0, "bye")
	replyVerify    = say(252, 0, 0, "cannot verify, but will take mail and try to deliver it")
	replyStartTLS  = say(220, 0, 0, "ready to start TLS")
	replyHelp      = mail.Reply{Code: 214, Enhanced: mail.EnhancedCode{Class: 2}, Lines: []string{
		"EHLO HELO STARTTLS AUTH MAIL RCPT DATA BDAT RSET NOOP VRFY HELP QUIT", "postrider relays mail; RFC 5321 says how",
	}}

	replyDraining          = say(421, 3, 2, "shutting down, try again")
	replyIdle              = say(421, 4, 2, "no command for too long, closing")
	replyErrors            = say(421, 7, 0, "too many errors, closing")
	replyMessages          = say(421, 7, 0, "enough messages on this connection, open a new one")
	replyConnections       = say(421, 3, 2, "too many connections, try again")
	replyConnectionIP      = say(421, 7, 0, "too many connections from your address, try again")
	replyConnectionNetwork = say(421, 7, 0, "too many connections from your network, try again")
	replyConnectionRate    = say(421, 7, 0, "connecting too often, try again in a minute")
	replySessionRcpts      = say(421, 7, 0, "enough recipients on this connection, open a new one")
	replyMessageRate       = say(450, 7, 1, "sending too often, try again in a minute")
	replyRevoked           = say(421, 7, 0, "authentication is no longer valid, closing")
	replyKeyBusy           = say(451, 7, 0, "another message with this idempotency key is under way, try again")
	replyKeyReused         = say(550, 7, 0, "this idempotency key was used for another message")

	replyStore      = say(451, 3, 0, "cannot store the message now, try again")
	replyMemory     = say(452, 3, 1, "too much mail at this moment, try again")
	replyRecipients = say(452, 5, 3, "too many recipients, send the rest again")

	replyUnknown         = say(500, 5, 1, "command not recognised")
	replyLongLine        = say(500, 5, 2, "command line too long")
	replySyntax          = say(500, 5, 2, "malformed command")
	replyBareLF          = say(550, 5, 2, "bare LF in a command; lines end with CR LF")
	replyBareCR          = say(550, 5, 2, "bare CR in a command; lines end with CR LF")
	replyNoArguments     = say(501, 5, 4, "this command takes no argument")
	replyNeedArgument    = say(501, 5, 4, "this command needs an argument")
	replyHello           = say(501, 5, 4, "need the name of the client, without blanks")
	replyNotHere         = say(502, 5, 1, "command not implemented")
	replyEarly           = say(554, 5, 1, "the server speaks first; closing")
	replyTalkedBeforeTLS = say(554, 5, 1, "nothing may follow STARTTLS before the handshake; closing")
	replyTLSAlready      = say(503, 5, 1, "TLS is there already")
	replyEHLOFirst       = say(503, 5, 1, "send EHLO first")
	replyNotAllowed      = say(550, 7, 1, "not from your address")
	replyAttributes      = say(501, 5, 4, "malformed attributes")
	replyBinaryData      = say(503, 5, 1, "BODY=BINARYMIME comes with BDAT")
	replyHelloFirst      = say(503, 5, 1, "send EHLO or HELO first")
	replyNested          = say(503, 5, 1, "a transaction is open; RSET ends it")
	replyMailFirst       = say(503, 5, 1, "send MAIL first")
	replyChunk           = say(501, 5, 4, "need the size of the chunk, and not a larger one than this; closing")
	replyInChunks        = say(503, 5, 1, "the content comes in chunks: BDAT or RSET")
	replyNoValidRcpt     = say(554, 5, 1, "no valid recipients")

	// RFC 4954 §6.
	replyAuthenticated = say(235, 7, 0, "authentication succeeded")
	replyCredentials   = say(535, 7, 8, "authentication credentials invalid")
	replyAuthLater     = say(454, 7, 0, "cannot verify credentials now, try again")
	replyAuthFirst     = say(530, 7, 0, "authentication required")
	replyTLSFirst      = say(530, 7, 0, "issue a STARTTLS command first")
	replyAuthNeedsTLS  = say(538, 7, 11, "authentication needs TLS; issue a STARTTLS command first")
	replyAuthTwice     = say(503, 5, 1, "authenticated already")
	replyAuthLine      = say(500, 5, 6, "authentication exchange line is too long")

	replyReversePath = say(550, 7, 1, "you may not send with this reverse-path")
	replyLongText    = say(550, 6, 0, "line too long; lines of a message have at most 998 octets")
	replyLongSigned  = say(550, 6, 0, "line too long in signed content, which must not be changed; lines of a message have at most 998 octets")
	replyRelay       = say(550, 7, 1, "relaying denied")
	replyTooLarge    = say(552, 3, 4, "message too large")
	replyBareNewline = say(550, 6, 0, "bare CR or LF in the message; lines end with CR LF")
)

// replyQueued is the end of ingress's duty: RFC 5321 §6.1.
func replyQueued(id mail.QueueID) mail.Reply {
	return say(250, 0, 0, "queued as "+id.String())
}

// replyContent says why content was not taken.
func replyContent(refusal *submission.Refusal) mail.Reply {
	switch refusal.Kind {
	case submission.TooLarge:
		return say(552, 3, 4, refusal.Text)
	case submission.Looping:
		return say(554, 4, 6, refusal.Text)
	case submission.NoAuthor, submission.Forbidden:
		return say(550, 7, 1, refusal.Text)
	}
	return say(550, 6, 0, refusal.Text)
}

// replyMail says why MAIL was not understood: RFC 5321 §4.1.1.2, §4.2.4,
// RFC 6531 §3.5, RFC 3463 §3.2.
func replyMail(err error) mail.Reply {
	if errors.Is(err, smtp.ErrNonASCII) {
		return say(550, 6, 7, err.Error())
	}
	return replyArguments(err, 7)
}

// replyRcpt is as replyMail, for RCPT.
func replyRcpt(err error) mail.Reply {
	if errors.Is(err, smtp.ErrNonASCII) {
		return say(553, 6, 7, err.Error())
	}
	return replyArguments(err, 3)
}

// replyArguments uses X.1.7 or X.1.3 (detail) for what is wrong in a path.
func replyArguments(err error, detail uint16) mail.Reply {
	switch {
	case errors.Is(err, smtp.ErrUnknown):
		return say(555, 5, 4, err.Error())
	case errors.Is(err, smtp.ErrParameter):
		return say(501, 5, 4, err.Error())
	case errors.Is(err, smtp.ErrArguments):
		return say(501, 5, 2, err.Error())
	}
	return say(501, 1, detail, err.Error())
}
