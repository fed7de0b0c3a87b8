package tlsrpt

import (
	"encoding/base64"
	"errors"
	"fmt"
	"net/url"
	"strings"
	"time"

	"github.com/postrider/postrider/pkg/mail"
	"github.com/postrider/postrider/pkg/smtp"
)

// ErrRUA says that nothing can be sent to a URI, today or tomorrow.
var ErrRUA = errors.New("not an address that reports can be sent to")

// ParseMailto returns the mailbox of a mailto URI (RFC 6068). What it wants of
// header fields does not count.
func ParseMailto(uri string) (mail.ForwardPath, mail.Domain, error) {
	scheme, address, found := strings.Cut(uri, ":")
	if !found || !strings.EqualFold(scheme, "mailto") {
		return "", "", ErrRUA
	}
	address, _, _ = strings.Cut(address, "?")
	address, err := url.PathUnescape(address)
	if err != nil {
		return "", "", fmt.Errorf("%w: %w", ErrRUA, err)
	}
	return ParseMailbox(address)
}

// ParseMailbox returns the parts of an address in ASCII.
func ParseMailbox(address string) (mail.ForwardPath, mail.Domain, error) {
	path, rest, err := smtp.ParseForwardPath("<"+address+">", false)
	if err != nil || rest != "" {
		return "", "", ErrRUA
	}
	domain, err := mail.ParseDomain(string(path)[strings.LastIndexByte(string(path), '@')+1:])
	if err != nil || domain.IsLiteral() {
		return "", "", ErrRUA
	}
	return path, domain, nil
}

// Compose returns the report as a message to a mailbox: RFC 8460 §5.3. id and
// date are those of the message.
func (r *Report) Compose(to mail.ForwardPath, id mail.QueueID, date time.Time) (content []byte, headerID string, err error) {
	data, err := r.JSON()
	if err != nil {
		return nil, "", err
	}
	headerID = "<" + id.String() + "@" + r.Submitter + ">"
	name := fmt.Sprintf("%s!%s!%d!%d.json.gz", r.Submitter, r.Domain, r.Day.Unix(), r.end().Unix())
	boundary := "=_" + id.String()
	var b strings.Builder
	field := func(name, value string) { b.WriteString(name + ": " + value + "\r\n") }
	field("Date", date.UTC().Format("Mon, 02 Jan 2006 15:04:05 -0700"))
	field("From", "<"+r.Contact+">")
	field("To", "<"+string(to)+">")
	field("Subject", "Report Domain: "+string(r.Domain)+"\r\n\tSubmitter: "+r.Submitter+"\r\n\tReport-ID: <"+r.ID()+">")
	field("Message-ID", headerID)
	field("TLS-Report-Domain", string(r.Domain))
	field("TLS-Report-Submitter", r.Submitter)
	// RFC 8460 §3: the domain hears of its broken TLS all the same. Those who
	// relay on from here should know, too: RFC 8689 §5.
	field("TLS-Required", "No")
	field("Auto-Submitted", "auto-generated")
	field("MIME-Version", "1.0")
	field("Content-Type", "multipart/report; report-type=\"tlsrpt\";\r\n\tboundary=\""+boundary+`"`)
	b.WriteString("\r\nThis is a MIME-encapsulated report on TLS (RFC 8460).\r\n")
	b.WriteString("\r\n--" + boundary + "\r\n")
	field("Content-Type", "text/plain; charset=us-ascii")
	b.WriteString("\r\nHow TLS went between " + r.Submitter + "\r\nand the mail exchangers of " + string(r.Domain) + "\r\non " +
		r.Day.Format(time.DateOnly) + " (UTC) is in the attached report.\r\n")
	b.WriteString("\r\n--" + boundary + "\r\n")
	field("Content-Type", "application/tlsrpt+gzip")
	field("Content-Transfer-Encoding", "base64")
	field("Content-Disposition", "attachment;\r\n\tfilename=\""+name+`"`)
	b.WriteString("\r\n")
	for encoded := base64.StdEncoding.EncodeToString(data); encoded != ""; {
		line := encoded[:min(76, len(encoded))]
		b.WriteString(line + "\r\n")
		encoded = encoded[len(line):]
	}
	b.WriteString("\r\n--" + boundary + "--\r\n")
	return []byte(b.String()), headerID, nil
}
