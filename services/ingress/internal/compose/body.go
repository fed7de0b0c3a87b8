package compose

import (
	"bytes"
	"encoding/base64"
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
	text = crlf(text)
	charset := "utf-8"
	var encoding string
	var content []byte
	switch class := classify(text); class {
	case plain:
		charset, encoding, content = "us-ascii", "7bit", []byte(text)
	case readable:
		encoding, content = "quoted-printable", quotedPrintable(text)
	default:
		encoding, content = "base64", base64Lines([]byte(text))
	}
	if encoding != "base64" && !bytes.HasSuffix(content, []byte("\r\n")) {
		content = append(content, "\r\n"...)
	}
	return part{
		fields: [][2]string{
			{"Content-Type", mime.FormatMediaType(mediaType, map[string]string{"charset": charset})},
			{"Content-Transfer-Encoding", encoding},
		},
		content: content,
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
	return part{fields: fields, content: base64Lines(f.Content)}
}

// textClass is what a text needs to be carried.
type textClass int

const (
	plain    textClass = iota // ASCII, and no line is too long
	readable                  // mostly ASCII
	binary
)

func classify(text string) textClass {
	beyond, long := 0, false
	line := 0
	for i := range len(text) {
		switch c := text[i]; {
		case c == '\n':
			line = 0
			continue
		case c >= utf8.RuneSelf || c < ' ' && c != '\t' && c != '\r' || c == 0x7f:
			beyond++
		}
		line++
		long = long || line > maxLine
	}
	switch {
	case beyond == 0 && !long:
		return plain
	case beyond*3 <= len(text):
		return readable
	}
	return binary
}

// crlf returns text with CRLF at the end of each line, whatever was there.
func crlf(text string) string {
	return lineEnds.Replace(text)
}

var lineEnds = strings.NewReplacer("\r\n", "\r\n", "\r", "\r\n", "\n", "\r\n")

func quotedPrintable(text string) []byte {
	var b bytes.Buffer
	w := quotedprintable.NewWriter(&b)
	// A buffer takes everything.
	_, _ = w.Write([]byte(text))
	_ = w.Close()
	return b.Bytes()
}

// base64Lines encodes data in lines of 76 octets, with a CRLF after each.
func base64Lines(data []byte) []byte {
	const raw = base64Line / 4 * 3
	lines := (len(data) + raw - 1) / raw
	out := make([]byte, 0, base64.StdEncoding.EncodedLen(len(data))+2*lines)
	for len(data) > 0 {
		n := min(len(data), raw)
		out = base64.StdEncoding.AppendEncode(out, data[:n])
		out = append(out, "\r\n"...)
		data = data[n:]
	}
	return out
}
