// Package smtpclient speaks SMTP (RFC 5321) to one remote host on one
// connection:
//
//	s, answer := smtpclient.Dial(ctx, host, options)
//	if s == nil {
//		... answer says at which phase it ended, and why
//	}
//	result := s.Send(ctx, transaction)   // again and again, while s.Usable()
//	s.Close()
//
// The package reports and does not judge: each recipient gets one Answer,
// which is the phase, the reply of the remote host or the error in place of
// one. What follows from it (relayed, delayed, failed, the next host) is
// decided in trouble.go of package delivery and nowhere else.
//
// What it sees to by itself, because it belongs to the protocol:
//
//   - EHLO falls back to HELO; STARTTLS by the mail.TLSLevel of the route, with
//     all that came before the handshake dropped (RFC 3207 §4.2);
//   - AUTH leaves over verified TLS only; LMTP hosts get LHLO, and answer for
//     each recipient;
//   - MAIL, RCPT and DATA leave in one write where PIPELINING is offered
//     (RFC 2920), an RSET that is owed from the last transaction with them;
//   - SIZE, BODY, SMTPUTF8, BY, MT-PRIORITY, REQUIRETLS and the DSN parameters
//     are sent where they are offered; a message that the host cannot take is
//     not offered to it;
//   - content goes by BDAT where CHUNKING works, else dot-stuffed, and is
//     otherwise not changed by an octet, unless a host without 8BITMIME wants
//     it 7-bit (package sevenbit);
//   - every wait has its own limit (RFC 5321 §4.5.3.2), every reply its bounds;
//   - the final dot leaves only after Transaction.BeforeDot allowed it, and if
//     no reply to it comes the answers are marked Uncertain (RFC 1047).
package smtpclient
