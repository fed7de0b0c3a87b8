package smtpd

import "regexp"

// difference is one between us and Postfix 3.7 for which there is a reason.
type difference struct {
	said         *regexp.Regexp // of the command, or of the content after 354
	ours, theirs int            // codes, or one of those below
	why          string
}

const (
	closed    = 0  // the connection ends without a reply
	anything  = -1 // any reply, or none
	permanent = 5  // any 5yz
)

func like(pattern string) *regexp.Regexp { return regexp.MustCompile(`(?is)^(?:` + pattern + `)`) }

// explained are the differences, of which the first that fits counts.
var explained = []difference{
	// Line ends and octets. TestTranscripts has the rules of ours one by one.
	{like(`[^\r\n]*\n$`), 550, anything, "a command that ends with LF alone ends the session"},
	{like(`NOOP\rx`), 550, 250, "a CR alone is no part of a command"},
	{like(`.*\t`), 500, anything, "a tab is no part of a command (RFC 5321 §4.1.1: parameters are set apart by SP)"},
	{like(`NOOP n{505,}`), 500, 250, "a command line has 512 octets (RFC 5321 §4.5.3.1.4); Postfix takes 2048"},
	{like(`.*(\r[^\n]|[^\r]\n).*\.\r\n$`), 550, anything, "content has no CR or LF alone (RFC 5321 §2.3.8)"},
	{like(`.*x{999}.*\.\r\n$`), 550, 250, "lines of more than 998 octets are refused, where they are not mended; Postfix breaks them"},
	{like(`BDAT \d+( LAST)?\r\n`), 550, 250, "nor has content in chunks, which Postfix takes as it is"},

	// Commands.
	{like(`(EXPN|SEND|TURN)`), 502, 500, "the command is known and not implemented (RFC 5321 §4.2.4)"},
	{like(`ETRN`), 502, anything, "ETRN is not implemented, and Postfix does not do it for this domain"},
	{like(`AUTH`), 502, 503, "AUTH is not offered here; Postfix says so as 503"},
	{like(`X(CLIENT|FORWARD)`), 550, anything, "not for this client; Postfix wants a transaction closed, or EHLO, before it says so"},
	{like(`HELP`), 214, 500, "HELP is a command (RFC 5321 §4.5.1 does not ask for it)"},
	{like(`VRFY a b`), 252, 501, "252 tells nothing, whatever is asked"},
	{like(`QUIT x`), 501, 221, "QUIT has no argument (RFC 5321 §4.1.1.10)"},
	{like(`EHLO a b`), 501, 250, "the name of a client is one word (RFC 5321 §4.1.1.1)"},
	{like(`(MAILFROM:|GET /)`), 500, 221, "not a command; Postfix takes header fields and HTTP for a sign of abuse, and so do we for HTTP"},
	{like(`DATA x`), 501, permanent, "the argument is refused before the sequence is"},
	{like(`BDAT`), 501, 521, "a chunk whose end is not known ends the session, by 501 with us"},
	{like(`BDAT 0`), anything, 551, "a chunk of no octets that is not the last one is valid (RFC 3030 §2)"},

	// Paths that we refuse.
	{like(`.*[^\x00-\x7f]`), permanent, anything, "not ASCII without SMTPUTF8 (RFC 6531 §3.5), or no U-label; Postfix takes any octets in a local-part"},
	{like(`MAIL.*AUTH=<>`), 555, anything, "AUTH is a parameter only where it is offered (RFC 4954 §5)"},
	{like(`\w+ \w+:.*<[^@>]*>`), 501, 250, "a mailbox has a domain, but for postmaster as a recipient; Postfix adds its own"},
	{like(`.*<[^">]*[ (),@\\][^>]*@`), 501, 250, "a local-part that has more than atoms is quoted (RFC 5321 §4.1.2)"},
	{like(`.*<[^>]*\.\s*>`), 501, 250, "a domain does not end with a dot (RFC 5321 §2.3.5)"},
	{like(`.*(< | >)`), 501, 250, "no space stands within the brackets"},
	{like(`.*<<`), 501, 250, "nor do brackets"},
	{like(`MAIL.*(SIZE=.*SIZE=|BODY=.*BODY=|RET=.*RET=|ENVID=.*ENVID=|SMTPUTF8.*SMTPUTF8)`), 501, 250, "no parameter is given twice (RFC 5321 §4.1.1.11)"},
	{like(`.*(ENVID|ORCPT)=[^ ]{100,}`), 501, 250, "ENVID has 100 octets, ORCPT 500 (RFC 3461 §5)"},

	// Paths that Postfix refuses.
	{like(`\w+ \w+: *[^<"\s]+@`), 250, 501, "a path without brackets is taken, as by a Postfix whose strict_rfc821_envelopes is off; that of the test has it on"},
	{like(`.*<(@[^:]*:)?""@`), 250, 501, "a quoted string may be empty (RFC 5321 §4.1.2)"},
	{like(`.*@[\d.]+>`), 250, 501, "digits are a domain by the grammar; there is no MX for it"},
	{like(`MAIL`), 250, 552, "Postfix holds the SIZE of a MAIL that it refused against the next one"},

	// Several things are wrong, or one for which there are two codes.
	{like(`(MAIL|RCPT)`), 501, 555, "a known parameter with a bad value is a syntax error"},
	{like(`(MAIL|RCPT)`), permanent, permanent, "both refuse it, and find another reason first"},
}

func (d *difference) is(u unit, ours, theirs int) bool {
	fits := func(want, code int) bool {
		return want == anything || want == code || want == permanent && code/100 == permanent
	}
	return fits(d.ours, ours) && fits(d.theirs, theirs) && d.said.MatchString(u.line+u.content)
}

// explain returns the reason of a difference, or "".
func explain(u unit, ours, theirs int) string {
	for i := range explained {
		if explained[i].is(u, ours, theirs) {
			return explained[i].why
		}
	}
	return ""
}
