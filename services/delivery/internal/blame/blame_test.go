package blame

import (
	"bufio"
	"strings"
	"testing"

	"github.com/postrider/postrider/pkg/mail"
	"github.com/postrider/postrider/pkg/smtp"
	"github.com/postrider/postrider/services/delivery/internal/adapt"
)

// said is a reply as it is read.
func said(t *testing.T, line string) mail.Reply {
	t.Helper()
	r, err := smtp.ReadReply(bufio.NewReader(strings.NewReader(line + "\r\n")))
	if err != nil {
		t.Fatal(err)
	}
	return r
}

// Refusals in the words of large providers and of the filters in use, with
// whom each blames, and whether it asks us to send less for a while. Names
// and addresses in them are made up.
func TestWhatRefusalsSay(t *testing.T) {
	for _, c := range []struct {
		who   string
		reply string
		want  Party
		slow  bool
	}{
		{"Spamhaus at RCPT", "554 5.7.1 Service unavailable; Client host [192.0.2.1] blocked using zen.spamhaus.org; https://www.spamhaus.org/query/ip/192.0.2.1", Address, false},
		{"a list at the greeting", "554 5.7.1 Your IP 192.0.2.1 is listed in our RBL", Address, false},
		{"Microsoft, block list", "550 5.7.1 Unfortunately, messages from [192.0.2.1] weren't sent. Please contact your Internet service provider since part of their network is on our block list (S3140).", Address, false},
		{"Microsoft, banned address", "550 5.7.606 Access denied, banned sending IP [192.0.2.1]. To request removal from this list please visit https://sender.example/ (AS16012609)", Address, false},
		{"Microsoft, banned sender", "550 5.7.511 Access denied, banned sender[192.0.2.1]. To request removal from this list please forward this message to delist@messaging.example", Address, false},
		{"Microsoft, list of a customer", "550 5.7.513 Service unavailable, Client host [192.0.2.1] blocked by example.com using Customer Block list (AS16012607)", Address, false},
		{"Microsoft, traffic of an address", "550 5.7.708 Service unavailable. Access denied, traffic not accepted from this IP. For more information please go to https://go.example/", Address, false},
		{"Microsoft, domain on a list", "550 5.7.1 Service unavailable, MailFrom domain is listed in Spamhaus. To request removal from this list see https://www.spamhaus.example/lookup/ (S8002)", Domain, false},
		{"Microsoft, reputation", "451 4.7.650 The mail server [192.0.2.1] has been temporarily rate limited due to IP reputation. For e-mail delivery information, see https://postmaster.example (S775)", Address, true},
		{"Microsoft, busy", "451 4.7.500 Server busy. Please try again later from [192.0.2.1]. (S77719)", Load, true},
		{"Microsoft, rate", "421 RP-001 The mail server IP connecting to this server has exceeded the rate limit allowed. Reason for rate limitation is related to IP/domain reputation.", Load, true},
		{"Microsoft, connections", "421 RP-002 The mail server IP connecting to this server has exceeded the maximum number of connections allowed", Load, true},
		{"Microsoft, authentication", "550 5.7.515 Access denied, sending domain from.test does not meet the required authentication level.", Domain, false},
		{"Microsoft, DMARC", "550 5.7.509 Access denied, sending domain from.test does not pass DMARC verification and has a DMARC policy of reject.", Domain, false},
		{"Microsoft, no mailbox", "550 5.5.0 Requested action not taken: mailbox unavailable (S2017062302).", Nobody, false},
		{"Microsoft 365, recipient", "550 5.4.1 Recipient address rejected: Access denied. AS(201806281)", Nobody, false},
		{"Exchange, no mailbox", "550 5.1.10 RESOLVER.ADR.RecipientNotFound; Recipient u@to.test not found by SMTP address lookup", Recipient, false},
		{"Google, address", "421 4.7.28 [192.0.2.1 15] Our system has detected an unusual rate of unsolicited mail originating from your IP address. To protect our users from spam, mail sent from your IP address has been temporarily rate limited.", Address, true},
		{"Google, reputation of the address", "550 5.7.1 [192.0.2.1 19] Our system has detected that this message is likely suspicious due to the very low reputation of the sending IP address. To best protect our users from spam, the message has been blocked.", Address, false},
		{"Google, reputation of the domain", "550 5.7.1 [192.0.2.1 19] Our system has detected that this message is suspicious due to the very low reputation of the sending domain. To best protect our users from spam, the message has been blocked.", Domain, false},
		{"Google, content", "550 5.7.1 [192.0.2.1 12] Our system has detected that this message is likely unsolicited mail. To reduce the amount of spam sent to Gmail, this message has been blocked.", Content, false},
		{"Google, no reverse name", "550 5.7.25 [192.0.2.1] The IP address sending this message does not have a PTR record setup, or the corresponding forward DNS entry does not match the sending IP.", Address, false},
		{"Google, dialup", "550 5.7.1 [192.0.2.1] The IP you're using to send mail is not authorized to send email directly to our servers. Please use the SMTP relay at your service provider instead.", Address, false},
		{"Google, authentication", "550 5.7.26 This mail has been blocked because the sender is unauthenticated. SPF [from.test] with ip: [192.0.2.1] = did not pass", Domain, false},
		{"Google, one mailbox", "450 4.2.1 The user you are trying to contact is receiving mail at a rate that prevents additional messages from being delivered.", Recipient, false},
		{"Google, no mailbox", "550 5.1.1 The email account that you tried to reach does not exist. Please try double-checking the recipient's email address for typos", Recipient, false},
		{"Google, full", "452 4.2.2 The recipient's inbox is out of storage space. Please direct the recipient to https://support.example/mail/", Recipient, false},
		{"Yahoo, listed", "553 5.7.1 [BL21] Connections will not be accepted from 192.0.2.1, because the ip is in Spamhaus's list", Address, false},
		{"Yahoo, for good", "553 5.7.2 [TSS09] All messages from 192.0.2.1 will be permanently deferred; Retrying will NOT succeed.", Address, false},
		{"Yahoo, deferred", "421 4.7.0 [TSS04] Messages from 192.0.2.1 temporarily deferred due to unexpected volume or user complaints - 4.16.55.1", Address, true},
		{"Yahoo, policy", "554 5.7.9 Message not accepted for policy reasons. See https://postmaster.example/error-codes", Nobody, false},
		{"Yahoo, no mailbox", "552 1 Requested mail action aborted, mailbox not found", Recipient, false},
		{"Apple, domain", "550 5.7.1 Your email was rejected due to having a domain present in the Spamhaus DBL -- please visit https://www.spamhaus.example/lookup/", Domain, false},
		{"Apple, address", "554 5.7.1 Mail from IP 192.0.2.1 was rejected due to listing in Spamhaus SBL", Address, false},
		{"Apple, policy", "554 5.7.1 [CS01] Message rejected due to local policy.", Nobody, false},
		{"Comcast, block", "554 resimta-po-01v.sys.comcast.net comcast 192.0.2.1 BL000001 blocked", Address, false},
		{"Comcast, throttled", "421 4.2.0 192.0.2.1 Throttled - try again later. RL000001", Load, true},
		{"AT&T, block", "521 5.7.1 flph829 DNSBL:ATTRBL 521< 192.0.2.1 >_is_blocked.__For_information_see_http://att.example/blocks", Address, false},
		{"AT&T, no reverse name", "550 5.7.1 Connections not accepted from servers without a valid sender domain.flph840 Fix reverse DNS for 192.0.2.1", Address, false},
		{"Cox", "554 ERROR: cox: IP blocked: refer to Error Codes section at https://www.cox.example/residential/", Address, false},
		{"Telekom, block", "554 IP=192.0.2.1 - A problem occurred. Ask your postmaster for help or to contact tosa@rx.telekom.example to clarify. (BL)", Address, false},
		{"GMX, block", "554 gmx.net (mxgmx014) Nemesis ESMTP Service not available No SMTP service IP address is black listed. For explanation visit https://postmaster.example/?c=bl&i=ip", Address, false},
		{"GMX, no reverse name", "554 gmx.net (mxgmx014) Nemesis ESMTP Service not available No SMTP service Bad DNS PTR resource record. For explanation visit https://postmaster.example/", Address, false},
		{"GMX, connections", "421 gmx.net (mxgmx014) Nemesis ESMTP Service not available Service not available Too many connections", Load, true},
		{"Orange, connections", "421 mwinf5c04 ME Trop de connexions, veuillez verifier votre configuration. Too many connections, slow down. OFR004_104 [104]", Load, true},
		{"Orange, no mailbox", "550 5.1.1 Adresse d au moins un destinataire invalide. Invalid recipient. OFR204_418 [418]", Recipient, false},
		{"Free", "421 Too many spams from your IP (192.0.2.1), please visit http://postmaster.example/", Address, true},
		{"Mail.ru, address", "550 Access from ip address 192.0.2.1 blocked. Visit http://mail.example/notspam/ or report details to abuse@mail.example", Address, false},
		{"Mail.ru, content", "550 spam message rejected. Please visit http://help.example/notspam-support/id?c=abc or report details to abuse@mail.example. Error code: ABC. ID: 00000000.", Content, false},
		{"Yandex, content", "554 5.7.1 [2] Message rejected under suspicion of SPAM; https://ya.example/1IrBc 1-abc", Content, false},
		{"QQ, address", "550 Ip frequency limited. http://service.example/cgi-bin/help?subtype=1&&id=20022", Load, false},
		{"QQ, content", "550 Mail content denied. http://service.example/cgi-bin/help", Content, false},
		{"Telefonica by IPv6", "550 5.7.1 Rejected: 2001:db8::25 is blocked", Address, false},

		{"Barracuda", "554 5.7.1 Service unavailable; Client host [mta.from.test] blocked using Barracuda Reputation; http://bbl.barracudacentral.example/q.cgi?ip=192.0.2.1", Address, false},
		{"Proofpoint", "554 Blocked - see https://ipcheck.proofpoint.example/?ip=192.0.2.1", Address, false},
		{"Mimecast, reputation", "550 csi.mimecast.example Poor Reputation Sender. - https://community.mimecast.example/docs/DOC-1369#550", Address, false},
		{"Mimecast, reputation of addresses", "550 Local CT IP Reputation Policies - (reject)", Address, false},
		{"Mimecast, spoofing", "550 Rejected by header based Anti-Spoofing policy: a@from.test - https://community.mimecast.example/docs/DOC-1369#550", Domain, false},
		{"Cisco", "554 Your access to this mail system has been rejected due to the sending MTA's poor reputation. If you believe that this failure is in error, please contact the intended recipient via alternate means.", Address, false},
		{"Trend Micro", "550 5.7.1 Service unavailable; Client host [192.0.2.1] blocked using Trend Micro RBL+. Please see http://www.mail-abuse.example/cgi-bin/lookup?ip_address=192.0.2.1", Address, false},
		{"Cloudmark", "554 IB103 Connection refused. 192.0.2.1 has a poor reputation on Cloudmark Sender Intelligence (CSI). Please visit http://csi.cloudmark.example/reset-request/?ip=192.0.2.1", Address, false},
		{"judged by many", "552 5.7.0 This message has been rejected due to content judged to be spam by the internet community. IB212", Content, false},
		{"Abusix", "554 5.7.1 Service unavailable; blocked by Abusix; see https://lookup.abusix.example/search?q=192.0.2.1", Address, false},
		{"cPanel", "550 \"JunkMail rejected - mta.from.test [192.0.2.1]:4242 is in an RBL: https://www.spamhaus.example/query/ip/192.0.2.1\"", Address, false},
		{"SpamExperts", "550 The sending IP (192.0.2.1) has been blacklisted", Address, false},
		{"SpamExperts, content", "550 High probability of spam", Content, false},
		{"not allowed to connect", "554 5.7.1 You are not allowed to connect: we have blacklisted 192.0.2.1", Address, false},
		{"by the recipient's server", "550 5.7.1 IP address blacklisted by recipient", Address, false},
		{"reputation service", "554 5.7.1 Mail from 192.0.2.1 rejected for policy reasons: blocked by our reputation service", Address, false},
		{"poor reputation", "550 5.7.1 Rejected: your sending IP has a poor reputation", Address, false},
		{"banned for now", "450 4.7.1 your host is temporarily banned", Address, false},
		{"Postfix, reverse name", "450 4.7.25 Client host rejected: cannot find your hostname, [192.0.2.1]", Nobody, false},
		{"Postfix, reverse name, for good", "550 5.7.25 Client host rejected: cannot find your hostname, [192.0.2.1]", Address, false},
		{"Postfix, access table", "554 5.7.1 <unknown[192.0.2.1]>: Client host rejected: Access denied", Address, false},
		{"Postfix, helo", "550 5.7.1 <mta.from.test>: Helo command rejected: Host not found", Domain, false},
		{"Postfix, sender", "550 5.1.8 <a@from.test>: Sender address rejected: Domain not found", Domain, false},
		{"Postfix, user", "550 5.1.1 <u@to.test>: Recipient address rejected: User unknown in virtual mailbox table", Recipient, false},
		{"Postfix, connections", "421 4.7.0 mx.to.test Error: too many connections from 192.0.2.1", Load, true},
		{"Exim, list of domains", "554 5.7.1 Message rejected: HELO/From domain from.test listed in the RHSBL of example", Domain, false},
		{"Exim, verify", "550 Sender verify failed", Domain, false},
		{"SPF", "550 5.7.1 SPF check failed: your IP 192.0.2.1 is not allowed to send for example.com, rejected", Domain, false},
		{"no such user, with a threat", "550 5.1.1 <u@x>: no such user; further attempts and your host will be blocked", Recipient, false},
		{"full, with a threat", "552 5.2.2 mailbox full; your server was refused", Recipient, false},
		{"the recipient's own list", "550 5.7.1 you are blocked by the recipient", Recipient, false},
		{"no such user", "550 5.1.1 no such user here", Recipient, false},
		{"content", "550 5.7.1 message content rejected", Content, false},
		{"a link in the message", "554 5.7.1 Message contains a URL listed on dbl.spamhaus.org", Content, false},
		{"SURBL", "550 5.7.1 blocked: URL in message is on SURBL", Content, false},
		{"virus", "554 5.7.1 virus Eicar-Test-Signature found; 192.0.2.1 logged and rejected", Content, false},
		{"mailbox full", "452 4.2.2 mailbox full", Recipient, false},
		{"greylisting", "450 4.7.1 greylisted, try again in 5 minutes", Nobody, false},
		{"policy, no address", "550 5.7.1 Message rejected due to local policy", Nobody, false},
		{"SES, rate", "454 Throttling failure: Maximum sending rate exceeded.", Load, true},
		{"greylisting of a host", "450 4.7.1 Client host [192.0.2.1] greylisted, blocked for 300 seconds", Nobody, false},
		{"the reason behind a link", "550 5.7.1 192.0.2.1 is blocked. For more information use the following link: https://lists.example/", Address, false},
		{"an address with advice", "550 5.7.1 Blocked: your IP has a low reputation. Set up SPF, DKIM and DMARC.", Address, false},
		{"the sender's address of both kinds", "550 5.7.1 sender IP 192.0.2.1 blocked", Address, false},
		{"the sender's address", "550 5.7.1 sender a@from.test rejected", Domain, false},
		{"the sender's domain", "550 5.1.8 sender domain from.test does not exist", Domain, false},
		{"blocked for what it sent", "550 5.7.1 192.0.2.1 blocked: too many messages to unknown people", Address, false},
		{"malware from an address", "554 5.7.1 Client host [192.0.2.1] blocked: sends malware", Address, false},
		{"connections, refused", "421 4.7.0 Too many connections from 192.0.2.1, connection refused", Load, true},
		{"Microsoft, Spamhaus", "550 5.7.1 Service unavailable; Client host [192.0.2.1] blocked using Spamhaus. To request removal from this list see https://www.spamhaus.example/query/ip/192.0.2.1 (AS3130).", Address, false},
		{"Microsoft 365, all recipients", "550 5.4.1 All recipient addresses rejected : Access denied", Nobody, false},
		{"Microsoft 365, error", "451 4.7.0 Temporary server error. Please try again later. PRX2", Nobody, false},
		{"Microsoft 365, disk", "452 4.3.1 Insufficient system resources (UsedDiskSpace)", Nobody, false},
		{"Microsoft 365, rule", "550 5.7.1 TRANSPORT.RULES.RejectMessage; the message was rejected by organization policy", Nobody, false},
		{"Microsoft 365, relay", "550 5.7.64 TenantAttribution; Relay Access Denied", Nobody, false},
		{"Microsoft 365, SPF", "550 5.7.23 The message was rejected because of Sender Policy Framework violation", Domain, false},
		{"Microsoft 365, spam", "550 5.7.350 Remote server returned message detected as spam", Content, false},
		{"Microsoft 365, forwarding", "550 5.7.520 Access denied, Your organization does not allow external forwarding.", Nobody, false},
		{"Google, reputation of the domain, likely", "550 5.7.1 [192.0.2.1 19] Our system has detected that this message is likely suspicious due to the very low reputation of the sending domain.", Domain, false},
		{"Google, links", "421 4.7.0 [192.0.2.1 15] Our system has detected that this message is suspicious due to the nature of the content and/or the links within. To best protect our users from spam, the message has been blocked.", Content, false},
		{"Google, attachment", "552 5.7.0 This message was blocked because its content presents a potential security issue.", Content, false},
		{"Google, later", "421 4.7.0 Try again later, closing connection. (MAIL)", Nobody, false},
		{"Google, DMARC", "550 5.7.26 Unauthenticated email from from.test is not accepted due to domain's DMARC policy.", Domain, false},
		{"Google, over quota", "452 4.2.2 The email account that you tried to reach is over quota.", Recipient, false},
		{"Yahoo, no account", "554 delivery error: dd This user doesn't have a yahoo.example account (u@yahoo.example) [0]", Recipient, false},
		{"Yahoo, disabled", "554 delivery error: dd Sorry your message to u@yahoo.example cannot be delivered. This mailbox is disabled (554.30).", Recipient, false},
		{"Yahoo, for good, deferred", "421 4.7.1 [TS03] All messages from 192.0.2.1 will be permanently deferred; Retrying will NOT succeed.", Address, false},
		{"Comcast, no reverse name", "554 5.7.1 Comcast requires that all mail servers must have a PTR record with a valid Reverse DNS entry.", Address, false},
		{"EarthLink", "550 Dynamic/zombied/spam IPs blocked. Write blocked@abuse.earthlink.example", Address, false},
		{"Verizon", "571 Email from 192.0.2.1 is currently blocked by Verizon Online's anti-spam system. The email sender or Email Service Provider may visit http://www.verizon.example/whitelist and request removal of the block.", Address, false},
		{"Apple by Proofpoint", "550 5.7.0 Blocked - see https://ipcheck.proofpoint.com/?ip=192.0.2.1", Address, false},
		{"Orange, address", "550 5.7.1 Adresse IP source bloquee pour incident de spam. Client host blocked for spamming issues. OFR006_102 Ref http://csi.cloudmark.example", Address, false},
		{"Libero", "550 smtp-18.iol.local IP blacklisted by CSI. For remediation please use http://csi.cloudmark.example/reset-request/?ip=192.0.2.1", Address, false},
		{"Docomo", "550 Unknown user u@docomo.example", Recipient, false},
		{"GMX, policy", "554 Transaction failed Reject due to policy restrictions.", Nobody, false},
		{"Exim, black list", "550 Rejected because 192.0.2.1 is in a black list at zen.spamhaus.org", Address, false},
		{"MDaemon", "550 5.7.1 This system is configured to reject mail from 192.0.2.1 (Host blacklisted - Found on Realtime Black List server 'bl.mailspike.net')", Address, false},
		{"a list of its own", "550 5.7.1 Your message (sent through 192.0.2.1) was blocked by ROTA DNSBL", Address, false},
		{"SORBS", "554 5.7.1 Rejected 192.0.2.1 found in dnsbl.sorbs.net", Address, false},
		{"Symantec", "554 5.7.1 The message from (<a@from.test>) with the subject of (Hello) matches a profile the Internet community may consider spam.", Content, false},
		{"SpamAssassin", "550 5.7.1 Blocked by SpamAssassin", Content, false},
		{"Postfix, sender list", "554 5.7.1 Service unavailable; Sender address [a@from.test] blocked using dbl.spamhaus.org", Domain, false},
		{"Postfix, sender's access", "554 5.7.1 <a@from.test>: Sender address rejected: Access denied", Domain, false},
		{"Postfix, relay", "554 5.7.1 <u@to.test>: Relay access denied", Nobody, false},
		{"sendmail, relay", "550 5.7.1 Relaying denied. IP name possibly forged [192.0.2.1]", Nobody, false},
		{"a list, of the recipient", "550 5.7.1 Recipient not authorized, your IP has been found on a block list", Address, false},
		{"the host's own words on itself", "550 5.7.1 The server rejected your message", Nobody, false},
		{"a host behind it", "550 5.7.1 Remote server refused the message; contact the administrator of the remote server", Nobody, false},
		{"a network behind it", "550 5.7.1 Delivery not authorized, message refused by the destination network", Nobody, false},
		{"closing", "421 4.2.1 Service not available, closing transmission channel", Nobody, false},
		{"access denied", "550 5.7.1 Access denied", Nobody, false},
		{"errors", "421 Too many errors from your ip (192.0.2.1)", Nobody, true},
		{"a local error", "451 4.3.0 Error: queue file write error", Nobody, false},
		{"a success that names a list", "250 2.0.0 queued; checked against zen.spamhaus.org", Nobody, false},
	} {
		t.Run(c.who, func(t *testing.T) {
			r := said(t, c.reply)
			if got := Of(r); got != c.want {
				t.Errorf("%s: blames %q, want %q", c.reply, got, c.want)
			}
			if got := adapt.AsksForPatience(r); got != c.slow {
				t.Errorf("%s: asks for patience: %v, want %v", c.reply, got, c.slow)
			}
		})
	}
}

func FuzzOf(f *testing.F) {
	f.Add(550, "5.7.1 Client host [192.0.2.1] blocked using zen.spamhaus.org")
	f.Add(421, "\xff too many connections_from 2001:db8::1")
	f.Fuzz(func(t *testing.T, code int, text string) {
		r := mail.Reply{Code: code, Lines: []string{text}}
		if got := Of(r); got != Nobody && !r.Transient() && !r.Permanent() {
			t.Errorf("%d blames %q", code, got)
		}
	})
}
