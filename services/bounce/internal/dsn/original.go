package dsn

import (
	"bytes"

	"github.com/postrider/postrider/pkg/mail"
)

var crlf = []byte("\r\n")

// original writes what is returned of the message: all of it when its sender
// asked so and it is small, else its header section. ok is false when nothing
// is left of it, or it must not leave: the report goes to whoever the sender's
// domain names, by what TLS there is, so it has nothing of a message that
// required TLS (RFC 8689 §5).
func (w writer) original(r *Report) (p part, ok bool) {
	if r.Original.Envelope.RequireTLS {
		return part{}, false
	}
	if p, ok := w.whole(r); ok {
		return p, true
	}
	header := headerSection(r.Content)
	if len(header) == 0 {
		return part{}, false
	}
	p = part{description: "Header section of the message", contentType: "text/rfc822-headers"}
	if w.international {
		p.contentType = "message/global-headers" // RFC 6533 §6
	}
	p.encoding, p.body = encode(header, w.international)
	return p, true
}

// whole returns the message as it is: RFC 3461 §4.3, RET=FULL, which counts
// for failures only.
func (w writer) whole(r *Report) (p part, ok bool) {
	wanted := r.Original.Envelope.Ret == mail.RetFull && r.kind() == failure
	complete := len(r.Content) > 0 && int64(len(r.Content)) == r.Original.SizeBytes
	if !wanted || !complete || len(r.Content) > MaxReturned || widthOf(r.Content) == binary {
		return part{}, false
	}
	p = part{description: "Undelivered message", contentType: "message/rfc822"}
	if w.international {
		p.contentType = "message/global" // RFC 6532 §3.7
	}
	p.encoding, p.body = encode(r.Content, true) // RFC 2046 §5.2.1: as it is
	return p, true
}

// headerSection returns the header section at the beginning of a content, in
// at most MaxReturned bytes, cut between two fields if that is possible.
func headerSection(content []byte) []byte {
	if bytes.HasPrefix(content, crlf) {
		return nil
	}
	header := content
	if end := bytes.Index(content, []byte("\r\n\r\n")); end >= 0 {
		header = content[:end+2]
	}
	if len(header) <= MaxReturned {
		return header
	}
	header = header[:MaxReturned+1] // the byte behind says whether the last line ends a field
	for end := len(header); ; {
		end = bytes.LastIndex(header[:end], crlf)
		if end < 0 {
			return header[:MaxReturned]
		}
		if next := end + 2; next < len(header) && header[next] != ' ' && header[next] != '\t' {
			return header[:next]
		}
	}
}
