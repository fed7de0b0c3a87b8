// Package smtpd is the SMTP server of ingress: sessions, their commands and
// replies, and the way of content from the wire to a mail.Submission.
//
// server.go accepts connections and ends them; session.go is the command
// loop and verbs.go its commands; data.go reads content, header.go looks at
// its header section and writes our trace field; wire.go carries octets in
// and replies out; memory.go bounds what all sessions hold together.
//
// A session is one goroutine. What it may do follows from its state: before
// EHLO, after it, in a transaction, in content.
package smtpd
