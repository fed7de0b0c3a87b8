// Package smtptest is the remote mail exchanger of tests: a real SMTP server
// on a real TCP port that records what it is sent, misbehaves as a script
// says, and complains about every rule of the protocol that its client
// breaks.
//
// Without a script it takes everything:
//
//	mx := smtptest.Start(t, smtptest.Script{})
//	... relay to mx.Addr() ...
//	got := mx.Messages()
//
// A script is a list of rules, each one act at one phase, for all or some
// commands; the first rule that applies decides and without one the reply is
// the happy one:
//
//	smtptest.Script{Rules: []smtptest.Rule{
//		{At: smtptest.Rcpt, Match: "gone@", Do: smtptest.Reply(550, "5.1.1 no such user")},
//		{At: smtptest.Rcpt, Times: 1, Each: smtptest.PerPath, Do: smtptest.Reply(450, "4.2.0 greylisted")},
//		{At: smtptest.Dot, Times: 2, Do: smtptest.Drop()},
//		{At: smtptest.Mail, Skip: 5, Each: smtptest.PerConnection, Do: smtptest.Then(smtptest.Reply(421, "4.3.2 enough"), smtptest.Drop())},
//	}}
//
// The server keeps the judge's log: times of connections, of MAIL and of the
// final dot, how many connections were open at once, and the violations. It
// is written without package smtp, so that both do not share a mistake.
package smtptest
