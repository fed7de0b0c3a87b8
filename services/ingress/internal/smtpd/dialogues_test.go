package smtpd

import (
	"fmt"
	"math/rand/v2"
	"strings"
)

// unit is what a client says before it waits for a reply: a command, for BDAT
// with its octets.
type unit struct {
	line    string
	content string // of DATA, sent after 354
}

func (u unit) verb() string {
	verb, _, _ := strings.Cut(strings.TrimRight(u.line, "\r\n"), " ")
	return strings.ToUpper(verb)
}

// grammar makes dialogues that are mostly right, and wrong in all the ways that
// it knows.
type grammar struct{ *rand.Rand }

func (g grammar) one(of ...string) string { return of[g.IntN(len(of))] }

// often returns what is usual nine times of ten, else one of the others.
func (g grammar) often(usual string, others ...string) string {
	if g.IntN(10) > 0 {
		return usual
	}
	return g.one(others...)
}

// dialogue makes what a client says in one session.
func (g grammar) dialogue() []unit {
	units := []unit{{line: g.hello()}}
	for range 4 + g.IntN(12) {
		switch g.IntN(12) {
		case 0, 1, 2:
			units = append(units, unit{line: g.mail()})
		case 3, 4, 5:
			units = append(units, unit{line: g.rcpt()})
		case 6:
			units = append(units, unit{line: g.mail()}, unit{line: g.rcpt()}, unit{line: g.often("DATA\r\n", "data\r\n", "DATA x\r\n"), content: g.content()})
		case 7:
			units = append(units, unit{line: g.often("DATA\r\n", "DATA \r\n", "DATA x\r\n"), content: g.content()})
		case 8:
			units = append(units, g.chunk(), unit{line: g.rcpt()})
		case 9:
			units = append(units, unit{line: g.mail()}, unit{line: g.rcpt()}, g.chunk(), g.chunk())
		default:
			units = append(units, unit{line: g.other()})
		}
	}
	return append(units, unit{line: "QUIT\r\n"})
}

func (g grammar) hello() string {
	return g.often(g.one("EHLO", "EHLO", "EHLO", "HELO", "ehlo")+" client.example\r\n",
		"EHLO [127.0.0.1]\r\n", "EHLO\r\n", "HELO\r\n", "EHLO  two.example\r\n", "EHLO a b\r\n", "EHLO -\r\n", "NOOP\r\n", "EHLO client_1\r\n")
}

func (g grammar) local() string {
	return g.often(g.one("a", "first.last", "a+b", "A", "x_y", "!#$%&'*/=?^`{|}~"),
		`"quoted x"`, "a..b", ".a", "a.", "ü", strings.Repeat("l", 64), strings.Repeat("l", 65), `"a\"b"`, `"a@b"`, `""`, "a b", "a@b", "", "a(b)", "a,b", `a\b`, `"a`)
}

func (g grammar) domain() string {
	return g.often(g.one("example.com", "EXAMPLE.org", "sub.domain.example", "xn--exmple-cua.com"),
		"example", "[192.0.2.1]", "[IPv6:2001:db8::1]", "[192.0.2]", "[x]", "[]", "-x.example", "x-.example", "a..example", ".example.com", "exämple.com",
		"example.com.", "x_y.example", "", strings.Repeat("d", 63)+".example", strings.Repeat("d", 64)+".example", "1.2.3.4", "exa mple.com",
		strings.Repeat("d23456789.", 26)+"example")
}

func (g grammar) path() string {
	mailbox := g.local() + "@" + g.domain()
	return g.often("<"+mailbox+">", mailbox, "<"+mailbox, mailbox+">", "< "+mailbox+">", "<"+mailbox+" >", "<>", "<@relay.example:"+mailbox+">",
		"<@a.example,@b.example:"+mailbox+">", "<"+g.local()+">", "<postmaster>", "<Postmaster>", "", "<<"+mailbox+">>", "Name <"+mailbox+">", "<"+mailbox+">x")
}

func (g grammar) parameters(known ...string) string {
	all := ""
	for g.IntN(3) == 0 {
		all += g.often(" ", "  ", "\t") + g.one(known...)
	}
	return all
}

func (g grammar) mail() string {
	return g.often("MAIL", "mail", "Mail") + " " + g.often("FROM:", "from:", "FROM: ", "FROM :", "FROM", "TO:", "") + g.path() +
		g.parameters("SIZE=100", "SIZE=0", "SIZE=99999999999", "SIZE=x", "SIZE=", "SIZE", "BODY=8BITMIME", "BODY=7BIT", "body=7bit", "BODY=x", "BODY=BINARYMIME",
			"SMTPUTF8", "SMTPUTF8=x", "RET=FULL", "RET=HDRS", "RET=x", "ENVID=abc", "ENVID=a+2Bb", "ENVID=a+zz", "ENVID="+strings.Repeat("e", 101), "AUTH=<>",
			"UNKNOWN=x", "FOO", "=x", "NOTIFY=NEVER") + g.often("\r\n", " \r\n")
}

func (g grammar) rcpt() string {
	return g.often("RCPT", "rcpt") + " " + g.often("TO:", "to:", "TO: ", "TO :", "TO", "FROM:", "") + g.path() +
		g.parameters("NOTIFY=NEVER", "NOTIFY=SUCCESS,FAILURE", "NOTIFY=DELAY", "NOTIFY=NEVER,DELAY", "NOTIFY=x", "NOTIFY=", "ORCPT=rfc822;a@example.com",
			"ORCPT=rfc822;a+2Bb@example.com", "ORCPT=rfc822;a+zz", "ORCPT=a@example.com", "ORCPT=", "ORCPT=rfc822;"+strings.Repeat("o", 500), "UNKNOWN=x", "FOO", "SIZE=1", "RET=FULL") +
		g.often("\r\n", " \r\n")
}

func (g grammar) other() string {
	return g.one("RSET\r\n", "RSET\r\n", "RSET x\r\n", "NOOP\r\n", "NOOP x y\r\n", "noop\r\n", "VRFY a@example.com\r\n", "VRFY\r\n", "VRFY a b\r\n", "HELP\r\n",
		"HELP MAIL\r\n", "EXPN list\r\n", "ETRN example.com\r\n", "STARTTLS\r\n", "AUTH PLAIN AGEAYg==\r\n", "AUTH\r\n", "XCLIENT ADDR=192.0.2.1\r\n", "XFORWARD ADDR=192.0.2.1\r\n",
		"TURN\r\n", "SEND FROM:<a@example.com>\r\n", "\r\n", " \r\n", "X\r\n", "MAIL\r\n", "RCPT\r\n", "QUIT x\r\n", "MAILFROM:<a@example.com>\r\n", "GET / HTTP/1.1\r\n",
		"NOOP\n", "NOOP\rx\r\n", "NOOP "+strings.Repeat("n", 505)+"\r\n", "NOOP "+strings.Repeat("n", 600)+"\r\n", "NOOP "+strings.Repeat("n", 3000)+"\r\n", "N\x00OP\r\n",
		"NÖÖP\r\n", g.hello(), "BDAT\r\n", "BDAT x\r\n", "BDAT -1\r\n", "BDAT 0 LAST x\r\n")
}

// content is what follows 354, with its end.
func (g grammar) content() string {
	var b strings.Builder
	b.WriteString(g.often("From: a@example.com\r\nSubject: x\r\n\r\n", "", "\r\n", "no header\r\n"))
	for range g.IntN(6) {
		b.WriteString(g.often(g.one("text\r\n", "..\r\n", "..dots\r\n", "\r\n", "ü\r\n", strings.Repeat("x", 998)+"\r\n"),
			"a\nb\r\n", "a\rb\r\n", "a\n.\nb\r\n", "a\r\n.\nb\r\n", "a\n.\r\nb\r\n", "a\r.\r\nb\r\n", "a\r\r\n", "\x00\r\n", strings.Repeat("x", 1200)+"\r\n", ".x\r\n", "Received: x\r\n"))
	}
	return b.String() + ".\r\n"
}

func (g grammar) chunk() unit {
	octets := g.often(g.one("", "text\r\n", "From: a@example.com\r\n\r\ntext\r\n", ".\r\n", "ü\r\n"), "half a line", "a\nb\r\n", "a\rb\r\n", "\r", "\n")
	return unit{line: fmt.Sprintf("%s %d%s\r\n%s", g.often("BDAT", "bdat"), len(octets), g.one("", " LAST", " last", " LAST"), octets)}
}
