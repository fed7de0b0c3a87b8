package delivery

import (
	"regexp"

	"github.com/postrider/postrider/pkg/mail"
)

// Replies that speak of the address that we connect from. Providers agree on
// no code: 421, 450, 550, 553, 554 and 5.7.1 all mean other things too, so
// the words decide.
var (
	speaksOfAddress = regexp.MustCompile(`(?i)` +
		// Lists of addresses, by name or by kind.
		`\b(zen|sbl|xbl|pbl|sbl-xbl)\.spamhaus\b|\bspamhaus\b|\bspamcop\b|\bbarracudacentral\b|\bsorbs\b|\buceprotect|\bsenderscore\b|\bmailspike\b|\b(rbl|dnsbl|dnsrbl)\b` +
		// "Client host [192.0.2.1] blocked using ...", "your IP is on our block list".
		`|\b(client host|(your|sending|connecting|source|remote|sender'?s?) (ip|host|server|mta|network|address))\b.{0,120}\b(block(ed|list(ed)?)?|black ?list(ed)?|ban(ned)?|reject(ed)?|denied|refused|poor reputation|bad reputation|low reputation|listed)\b` +
		`|\b(ip|address)\b.{0,20}\[?\d{1,3}\.\d{1,3}\.\d{1,3}\.\d{1,3}\]?.{0,80}\b(block(ed|list)?|black ?list(ed)?|ban(ned)?|denied|reputation|listed)\b` +
		`|\b(ip|ip address|host|server)( address)? (is|was|has been) (temporarily |permanently )?(block(ed)?|black ?listed|banned|listed|on our block ?list)\b` +
		`|\bpart of (your|their) network is on our block list\b|\(S3(140|150)\)` +
		`|\bunusual rate of unsolicited mail originating from your ip\b|\boriginating from your (ip|netblock)\b` +
		`|\bconnections (will not be|are not) accepted from\b|\[(BL|TSS)\d\d\]|\bBL000\d{3}\b`)
	// Lists of domains, and words on the recipient's or the content's account.
	speaksOfOther = regexp.MustCompile(`(?i)\b(surbl|uribl|dbl\.spamhaus|url|uri|link|body|content|attachment|virus|spf|dkim|dmarc|ptr|reverse dns|recipient('s)? (has )?(block|reject)|blocked by (the )?recipient|sender (address|domain)|mailbox)\b`)
)

// blocksUs reports whether a reply says that the site does not want mail from
// our address, whatever the message.
func blocksUs(r mail.Reply) bool {
	if !r.Transient() && !r.Permanent() {
		return false
	}
	text := r.Text()
	return speaksOfAddress.MatchString(text) && !speaksOfOther.MatchString(text)
}
