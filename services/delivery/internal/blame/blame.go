// Package blame reads from the words of a refusal whom it speaks of: the
// address that we connect from, the sender's domain, the content, the
// recipient, or how much we send. It is pure.
//
// Providers agree on no code: 421, 450, 550, 553, 554 and X.7.1 mean all kinds
// of things, so the words decide, and codes only where they can mean one
// thing.
package blame

import (
	"regexp"
	"strings"

	"github.com/postrider/postrider/pkg/mail"
)

// Party is whom, or what, a refusal speaks of.
type Party string

// The parties. Only the first is a reason to try another source.
const (
	Address   Party = "address"   // that we connect from
	Load      Party = "load"      // more than the host takes at a time
	Recipient Party = "recipient" // the mailbox, or what its owner wants
	Content   Party = "content"
	Domain    Party = "domain" // of the sender, or its authentication
	Nobody    Party = ""       // that is plain from the words
)

// Words that the rules below share.
const (
	ipv4    = `\d{1,3}(?:\.\d{1,3}){3}`
	ip      = `(?:` + ipv4 + `|\b[0-9a-f]{1,4}:[0-9a-f:]{2,}[0-9a-f.]*)`
	listed  = `(?:black[ -]?list(?:ed)?|block[ -]?list(?:ed)?|deny[ -]?list(?:ed)?|blocked|banned|barred|listed|(?:bad|low|poor) reputation)`
	refused = `(?:` + listed + `|rejected|refused|denied|not (?:allowed|accepted|authorized|welcome))`
	ours    = `(?:your|sending|sender'?s?|connecting|source|client|origin(?:ating)?)`
	machine = `(?:ips?|ip[ -]address(?:es)?|mail ?server|server|host|mta|network|netblock)`
	reverse = `\bptr\b|reverse dns|cannot find your (?:reverse )?hostname`
	sender  = `(?:mail ?from:?|from:?|sender'?s?|sending|envelope|helo|ehlo|return-path|header|originating|your|rfc5321|rfc5322)`
)

// rules are what words mean, each over those behind it.
var rules = []struct {
	of    Party
	class int // of the code, for which the rule holds; 0: any
	by    *regexp.Regexp
}{
	// What passes by waiting: greylisting (RFC 6647), and names that could not
	// be looked up.
	{Nobody, 4, words(`\bgr[ae]y-?list`, reverse)},
	// What is said of addresses and of nothing else, by whom it is known from.
	{Address, 0, words(
		`banned (?:sending ip|sender ?\[)`, `traffic not accepted from this ip`, `\(S3(?:140|150)\)`, `part of (?:your|their) network is on our block list`, // Microsoft
		`reputation of the sending ip`, `the ip you're using to send mail is not authorized`, `unusual rate of unsolicited mail originating from your (?:ip|netblock)`, // Google
		`\[(?:BL|TSS)\d\d\]`, `connections (?:will not be|are not) accepted from`, `all messages from `+ip+` will be permanently deferred`, // Yahoo
		`\bBL000\d{3}\b`,                // Comcast
		`\bIP=`+ipv4+` - `,              // Telekom
		`poor reputation sender`,        // Mimecast
		`sending mta's poor reputation`, // Cisco
		`too many spams? from your ip`,  // Free
		`is in an rbl\b`,                // cPanel
		`client host\b.{0,80}\b`+listed, ours+` ip(?:[ -]address)?\b.{0,40}\b`+listed, `\bip(?:[ -]address)? (?:is )?(?:black|block)[ -]?listed`, `\bip reputation`,
		`rate[ -]limited due to ip reputation`,
	)},
	{Address, 5, words(reverse)}, // RFC 7372 §3.3
	{Domain, 0, words(`reputation of the sending domain`)},
	{Load, 4, words(load...)},
	{Recipient, 0, words(
		`no such (?:user|recipient|mailbox|person|account|address|mail ?drop)`, `(?:user|recipient|mailbox|account|address)(?: \S+@\S+)? (?:is )?(?:unknown|not known|not found|inactive|disabled|deactivated|suspended)`,
		`unknown (?:or illegal |or invalid )?(?:user|recipient|mailbox|account|local)`, `invalid (?:recipient|mailbox|user)`, `(?:user|recipient|mailbox|account|address|reach) (?:\S+@\S+ )?(?:does not|doesn't|doesnt) exist`, `not a valid (?:user|recipient|mailbox)`, `does(?: not|n't) have an? [\w. ]{0,40}account`,
		`(?:mailbox|inbox|account|user|recipient)(?: \S+)? (?:is |has )?(?:full|over ?(?:its |the )?quota|out of storage|exceeded)`, `over ?quota`, `quota exceeded`,
		`blocked by (?:the )?(?:recipient|user|addressee)`, `(?:recipient|user)(?:'s)? (?:has )?(?:block|reject|refus)\w* (?:you|mail|messages|the sender|this sender)`,
		`the (?:user|recipient|e?mail account) (?:that )?you (?:are trying|tried) to (?:contact|reach)`,
	)},
	{Content, 0, words(
		`contain\w* .{0,30}\b(?:url|uri|link|domain)`, `\b(?:url|uri|link)s? (?:in|was|is|listed|found|blocked|black|block)`, `surbl`, `uribl`, `\bvirus|malware|phish`, `attachment`, `\bsubject (?:line|header|contain)`,
		`message (?:body|content)`, `content (?:was |is |has been )?(?:rejected|denied|refused|blocked|judged|filter)`, `due to (?:its |the )?content`,
		`this message is (?:likely )?(?:unsolicited|suspicious)`, `(?:its|the) content\b`, `consider(?:ed)? (?:as )?spam`, `spamassassin`, `(?:message|mail|e-?mail) (?:was |is |has been )?(?:identified|detected|classified|considered|rejected|flagged|looks|judged).{0,20}(?:as|like|to be|under suspicion of) \w{0,10} ?(?:spam|unsolicited|junk|bulk)`,
		`spam (?:message|content|score)`, `probability of spam`,
	)},
	{Domain, 0, words(
		`\bspf\b`, `\bdkim\b`, `\bdmarc\b`, `\barc\b`, `anti-?spoof`, `authentication (?:check|result|information|requirement)`, `unauthenticated (?:e?mail|message|sender)`, `not authenticated`,
		`\brhsbl\b`, `\bdbl\b`, sender+`[ /]?\S{0,20} ?domain`, `\bdomain(?: name)?(?: \S+)? (?:is |was |has been |in |on )?`+refused, `domain .{0,30}(?:does not|doesn't) exist`, `reputation of (?:the |your )?(?:\w+ )?domain`, `domain reputation`,
		`(?:sender|return|from) (?:address|e-?mail|id)\b.{0,80}`+refused, `sender (?:\S+@\S+ )?(?:is |was )?`+refused, `(?:helo|ehlo) .{0,60}`+refused, `sender verif`,
	)},
	{Address, 0, words(
		// Lists of addresses, by name or by kind.
		`\bspamhaus\b`, `\bspamcop\b`, `\bbarracuda(?:central\b|.{0,20}reputation)`, `\bsorbs\b`, `\buceprotect`, `\bsenderscore\b`,
		`\bmailspike\b`, `\babusix\b`, `\bipcheck\b`, `\b(?:ip)?(?:rbl|dnsbl|dnsrbl)\b`, `\brbl\+`, `cloudmark sender intelligence`, `\bcsi\.cloudmark\b`,
		`[?&]ip=`+ipv4, // the page of a list, with the address
		// "Your server is refused", "we have blacklisted 192.0.2.1".
		`\b(?:client host|`+ours+` `+machine+`|ip[ -]address)\b.{0,120}\b`+refused+`\b`,
		`\b(?:ips?|ip[ -]address(?:es)?|host) (?:is |was |has been )?(?:temporarily |permanently )?`+listed, `\b`+machine+` (?:is|was|has been) (?:temporarily |permanently )?`+listed,
		`(?:ip|address|from|host)\b.{0,20}`+ip+`.{0,80}\b`+refused, ip+`\]?,? (?:is |was |has been |has a |is on our )?(?:currently |temporarily |permanently )?`+refused,
		listed+`:? .{0,20}`+ip, `originating from your (?:ip|netblock)`,
	)},
	{Load, 5, words(load...)},
}

// load is how hosts say that it was too much, or too fast.
var load = []string{
	`too many (?:concurrent |simultaneous |open )?(?:\w+ )?(?:connections|sessions|messages|e?mails)`, `max(?:imum)? .{0,30}(?:connections|sessions)`, `concurren(?:t|cy)`,
	`exceed(?:s|ed|ing)? .{0,40}(?:rate|limit|connections|quota|messages per)`, `throttl`, `frequency limited`, `server (?:is )?(?:too )?busy`, `slow(?:ing)? ?down`,
}

// words makes one expression, whatever the case, of several.
func words(any ...string) *regexp.Regexp {
	return regexp.MustCompile(`(?i)` + strings.Join(any, `|`))
}

// Of returns whom a reply speaks of; Nobody if it is no refusal.
func Of(r mail.Reply) Party {
	if !r.Transient() && !r.Permanent() {
		return Nobody
	}
	if of := ofCode(r.Enhanced); of != Nobody {
		return of
	}
	text := strings.ReplaceAll(r.Text(), "_", " ") // "521<_192.0.2.1_>_is_blocked."
	for i := range rules {
		if b := &rules[i]; (b.class == 0 || b.class == r.Code/100) && b.by.MatchString(text) {
			return b.of
		}
	}
	return Nobody
}

// ofCode returns what a code says that means one thing only: those of
// RFC 7372, and Microsoft's own, which have details of three digits.
func ofCode(c mail.EnhancedCode) Party {
	if c.Subject != 7 {
		return Nobody
	}
	switch d := c.Detail; {
	case d == 25 && c.Class == 5: // reverse DNS; a 4yz may be about the host's own
		return Address
	case d >= 20 && d <= 24, d == 26, d == 27, d == 29: // DKIM, SPF, several checks, null MX of the sender, ARC
		return Domain
	case d == 508, d == 511, d == 513, d >= 606 && d <= 651, d == 708:
		return Address
	case d == 509, d == 515, d == 750: // DMARC, authentication, unregistered domain
		return Domain
	case d == 512: // not as RFC 5322 has it
		return Content
	}
	return Nobody
}
