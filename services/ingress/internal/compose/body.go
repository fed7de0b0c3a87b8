package compose

import (
	"bytes"
	"encoding/base64"
	"io"
	"mime"
	"mime/quotedprintable"
	"strings"
	"unicode/utf8"
)

const (
	maxLine    = 998 // RFC 5322 §2.1.1, without CRLF
	base64Line = 76  // RFC 2045 §6.8
)

// textPart returns a text in the encoding that changes it least.
func textPart(mediaType, text string) part {
	charset := "utf-8"
	var encoding string
	var c content
	switch l := look(text); {
	case l.beyond == 0 && !l.long:
		charset, encoding = "us-ascii", "7bit"
		c = content{len(text) + l.ends + len("\r\n"), func(dst []byte) []byte { return ended(appendCRLF(dst, text), len(dst)) }}
	case l.beyond*3 <= len(text):
		encoding = "quoted-printable"
		c = quotedPrintable(text, l)
	default:
		encoding = "base64"
		c = base64Lines(len(text)+l.ends, func() []byte { return appendCRLF(make([]byte, 0, len(text)+l.ends), text) })
	}
	return part{
		fields: [][2]string{
			{"Content-Type", mime.FormatMediaType(mediaType, map[string]string{"charset": charset})},
			{"Content-Transfer-Encoding", encoding},
		},
		content: c,
	}
}

// filePart returns a file in base64.
func filePart(f File, disposition string) part {
	parameters := map[string]string{}
	if f.Name != "" {
		parameters["filename"] = f.Name // RFC 2231 where it is not ASCII
	}
	fields := [][2]string{
		{"Content-Type", f.MediaType},
		{"Content-Transfer-Encoding", "base64"},
		{"Content-Disposition", mime.FormatMediaType(disposition, parameters)},
	}
	if f.ContentID != "" {
		fields = append(fields, [2]string{"Content-ID", "<" + f.ContentID + ">"})
	}
	return part{fields: fields, content: base64Lines(len(f.Content), func() []byte { return f.Content })}
}

// traits are what says how a text can be carried.
type traits struct {
	beyond int  // octets that are not ASCII, or control characters
	equals int  // quoted-printable writes it in three octets, as those
	ends   int  // at least the lines
	long   bool // a line is too long
}

func look(text string) traits {
	var l traits
	line := 0
	for i := range len(text) {
		switch c := text[i]; {
		case c == '\n' || c == '\r':
			line = 0
			l.ends++
			continue
		case c >= utf8.RuneSelf || c < ' ' && c != '\t' || c == 0x7f:
			l.beyond++
		case c == '=':
			l.equals++
		}
		line++
		l.long = l.long || line > maxLine
	}
	return l
}

// appendCRLF appends text with CRLF at the end of each line, whatever was
// there.
func appendCRLF(dst []byte, text string) []byte {
	for {
		i := strings.IndexAny(text, "\r\n")
		if i < 0 {
			return append(dst, text...)
		}
		dst = append(append(dst, text[:i]...), "\r\n"...)
		if strings.HasPrefix(text[i:], "\r\n") {
			i++
		}
		text = text[i+1:]
	}
}

// ended gives the last line of dst[from:] its end.
func ended(dst []byte, from int) []byte {
	if bytes.HasSuffix(dst[from:], []byte("\r\n")) {
		return dst
	}
	return append(dst, "\r\n"...)
}

// appender is where a writer appends.
type appender []byte

func (a *appender) Write(p []byte) (int, error) {
	*a = append(*a, p...)
	return len(p), nil
}

func quotedPrintable(text string, l traits) content {
	// A space before the end of a line is encoded, too, and lines of 76 octets
	// have a soft end: RFC 2045 §6.7.
	written := len(text) + 2*(l.beyond+l.equals) + 3*l.ends
	return content{written + 3*(written/70+1) + len("\r\n"), func(dst []byte) []byte {
		from := len(dst)
		w := quotedprintable.NewWriter((*appender)(&dst))
		// An appender takes everything.
		_, _ = io.WriteString(w, text)
		_ = w.Close()
		return ended(dst, from)
	}}
}

// base64Lines encodes at most n octets in lines of 76, with a CRLF after each.
func base64Lines(n int, data func() []byte) content {
	const raw = base64Line / 4 * 3
	size := base64.StdEncoding.EncodedLen(n) + (n/raw+1)*len("\r\n")
	return content{size, func(dst []byte) []byte {
		data := data()
		for len(data) > 0 {
			n := min(len(data), raw)
			dst = base64.StdEncoding.AppendEncode(dst, data[:n])
			dst = append(dst, "\r\n"...)
			data = data[n:]
		}
		return dst
	}}
}
