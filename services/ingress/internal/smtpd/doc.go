// Package smtpd is the SMTP server of ingress: sessions, their commands and
// replies, and the way of content from the wire to a mail.Submission.
//
// server.go accepts connections at its doors and ends them, crowd.go counts
// whose they are. session.go finds out who has come and runs the command
// loop: hello.go, verbs.go, tls.go, auth.go and xclient.go are its commands.
// data.go and chunk.go read content into package spool, and trace.go writes our
// trace field; wire.go carries octets in and replies out, in the clear or under
// TLS; efforts.go bounds what a client may do in vain.
//
// A session is one goroutine. What it may do follows from its state (before
// EHLO, after it, in a transaction, in content) and from the identity of its
// client: that of its network, of its credential or of its certificate.
package smtpd
