package smtp

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"strconv"
	"strings"
	"unicode"
	"unicode/utf8"

	"github.com/postrider/postrider/pkg/mail"
)

// Bounds of what ReadReply keeps and reads. RFC 5321 §4.5.3.1.5 allows 512
// octets a line; real servers send longer ones, hostile ones send without end,
// and a reply is kept for each recipient, in history, log and spans.
const (
	// MaxReplyText is how many octets of the text of a reply are kept.
	MaxReplyText = 2000

	maxHelloText  = 16 << 10 // kept of the reply to EHLO
	maxReplyLines = 128      // lines that are kept
	maxReply      = 1 << 20  // octets of all lines
)

// ErrReply is returned by ReadReply for bytes that are no SMTP reply, or one
// without a bound. Nothing more can be learned from the connection.
var ErrReply = errors.New("malformed SMTP reply")

// ReadReply reads one reply, of one or more lines (RFC 5321 §4.2.1). The
// code, and the enhanced code if there is one (RFC 2034), are those of the
// last line that has one. The text of the lines is made safe to store and to
// print: valid UTF-8 without control characters.
//
// A line may end in a bare LF and have no text. Of the text the first
// MaxReplyText octets, in up to 128 lines, are kept; what comes behind them is
// read and dropped, up to 1 MiB. ReadReply fails with ErrReply when the bytes are no
// such reply, with io.ErrUnexpectedEOF or io.EOF when the connection ended
// inside or before it, or with the error of r.
func ReadReply(r *bufio.Reader) (mail.Reply, error) { return readReply(r, MaxReplyText) }

// ReadHelloReply reads as ReadReply does, and keeps 16 KiB of the text of a
// positive reply: each line of one to EHLO is a word on what the server can do.
func ReadHelloReply(r *bufio.Reader) (mail.Reply, error) {
	reply, err := readReply(r, maxHelloText)
	if !reply.Positive() {
		reply = reply.Within(MaxReplyText)
	}
	return reply, err
}

func readReply(r *bufio.Reader, keep int) (mail.Reply, error) {
	var reply mail.Reply
	for left := maxReply; ; {
		line, n, err := readReplyLine(r, keep, left)
		if err != nil {
			if len(reply.Lines) > 0 && errors.Is(err, io.EOF) {
				err = fmt.Errorf("in a reply: %w", unexpected(err))
			}
			return mail.Reply{}, err
		}
		left -= n
		code, more, text, ok := cutReplyCode(line)
		if !ok {
			return mail.Reply{}, fmt.Errorf("%w: %q", ErrReply, clip(line))
		}
		// RFC 5321 §4.2.1: the code of all lines must be the same. Where a
		// server breaks the rule its last line decides: that line ends the
		// command, and to drop the reply to a final dot makes a duplicate.
		reply.Code = code
		if enhanced, rest, ok := cutEnhanced(text); ok && int(enhanced.Class) == code/100 {
			reply.Enhanced, text = enhanced, rest
		}
		if len(reply.Lines) == 0 || keep > 0 && len(reply.Lines) < maxReplyLines {
			text = mail.Clip(safeText(mail.Clip(text, keep)), keep)
			keep -= len(text)
			reply.Lines = append(reply.Lines, text)
		}
		if !more {
			if int(reply.Enhanced.Class) != reply.Code/100 {
				reply.Enhanced = mail.EnhancedCode{}
			}
			return reply, nil
		}
	}
}

// AppendReply appends the reply as it stands on the wire, with the enhanced
// code on each line (RFC 2034 §4), and returns the extended buffer. A reply
// without lines gets one empty line. The text must have no line breaks.
func AppendReply(dst []byte, reply mail.Reply) []byte {
	for i, line := range reply.Lines {
		separator := byte('-')
		if i == len(reply.Lines)-1 {
			separator = ' '
		}
		dst = appendReplyLine(dst, reply, separator, line)
	}
	if len(reply.Lines) == 0 {
		dst = appendReplyLine(dst, reply, ' ', "")
	}
	return dst
}

func appendReplyLine(dst []byte, reply mail.Reply, separator byte, text string) []byte {
	dst = strconv.AppendInt(dst, int64(reply.Code), 10)
	dst = append(dst, separator)
	if e := reply.Enhanced; !e.IsZero() {
		dst = strconv.AppendUint(dst, uint64(e.Class), 10)
		dst = append(dst, '.')
		dst = strconv.AppendUint(dst, uint64(e.Subject), 10)
		dst = append(dst, '.')
		dst = strconv.AppendUint(dst, uint64(e.Detail), 10)
		dst = append(dst, ' ')
	}
	dst = append(dst, text...)
	return append(dst, '\r', '\n')
}

// readReplyLine returns the beginning of the next line, without its line end:
// its code, and as much behind it as is kept of the text. n is the length of
// the line, which may be at most left. The bytes are valid until the next
// read.
func readReplyLine(r *bufio.Reader, keep, left int) (line []byte, n int, err error) {
	enough := len("250-5.999.999 ") + max(keep, 0)
	whole := true // line is a slice of the buffer of r
	for {
		part, err := r.ReadSlice('\n')
		if n += len(part); n > left {
			return nil, n, fmt.Errorf("%w: more than %d octets", ErrReply, maxReply)
		}
		if err == nil && whole {
			return trimLineEnd(part), n, nil
		}
		line = append(line, part[:min(len(part), max(enough-len(line), 0))]...)
		switch {
		case err == nil && len(line) == n:
			return trimLineEnd(line), n, nil
		case err == nil:
			return line, n, nil
		case !errors.Is(err, bufio.ErrBufferFull):
			if n > 0 {
				err = fmt.Errorf("in a reply: %w", unexpected(err))
			}
			return nil, n, err
		}
		if whole {
			// What does not begin as a reply does is none, however it goes on.
			if _, _, _, ok := cutReplyCode(line[:4]); !ok {
				return nil, n, fmt.Errorf("%w: %q", ErrReply, clip(line))
			}
		}
		whole = false
	}
}

func trimLineEnd(line []byte) []byte {
	n := len(line) - 1
	if n > 0 && line[n-1] == '\r' {
		n--
	}
	return line[:n]
}

// cutReplyCode splits "250-text", "250 text" and "250".
func cutReplyCode(line []byte) (code int, more bool, text string, ok bool) {
	if len(line) < 3 {
		return 0, false, "", false
	}
	for _, c := range line[:3] {
		if c < '0' || c > '9' {
			return 0, false, "", false
		}
		code = code*10 + int(c-'0')
	}
	// RFC 5321 §4.2: the first digit is 2 to 5. The second one is not checked:
	// servers in use send 571 and the like.
	if code < 200 || code > 599 {
		return 0, false, "", false
	}
	if len(line) == 3 {
		return code, false, "", true
	}
	switch line[3] {
	case '-':
		return code, true, string(line[4:]), true
	case ' ', '\t':
		return code, false, string(line[4:]), true
	}
	return 0, false, "", false
}

// cutEnhanced splits "5.1.1 text" into the enhanced code and the text:
// RFC 2034 §4, RFC 3463 §2.
func cutEnhanced(text string) (mail.EnhancedCode, string, bool) {
	text = strings.TrimLeft(text, " ")
	word, rest, _ := strings.Cut(text, " ")
	enhanced, ok := ParseEnhancedCode(word)
	return enhanced, rest, ok
}

// ParseEnhancedCode reads the dotted form, such as "5.1.1": class 2, 4 or 5,
// subject and detail of one to three digits (RFC 3463 §2).
func ParseEnhancedCode(text string) (mail.EnhancedCode, bool) {
	class, rest, ok := strings.Cut(text, ".")
	if !ok || class != "2" && class != "4" && class != "5" {
		return mail.EnhancedCode{}, false
	}
	subject, detail, ok := strings.Cut(rest, ".")
	if !ok {
		return mail.EnhancedCode{}, false
	}
	s, sok := parseSubcode(subject)
	d, dok := parseSubcode(detail)
	if !sok || !dok {
		return mail.EnhancedCode{}, false
	}
	return mail.EnhancedCode{Class: uint16(class[0] - '0'), Subject: s, Detail: d}, true
}

func parseSubcode(text string) (uint16, bool) {
	if len(text) < 1 || len(text) > 3 {
		return 0, false
	}
	var n uint16
	for _, c := range []byte(text) {
		if c < '0' || c > '9' {
			return 0, false
		}
		n = n*10 + uint16(c-'0')
	}
	return n, true
}

// safeText returns text as it may go to a log line, a report or the
// database: control characters, and those that turn the direction of what
// follows, become spaces; invalid UTF-8 becomes U+FFFD.
func safeText(text string) string {
	clean := true
	for i := range len(text) {
		if text[i] < ' ' || text[i] >= 0x7f {
			clean = false
			break
		}
	}
	if clean {
		return text
	}
	return strings.Map(func(c rune) rune {
		if unicode.IsControl(c) || unicode.Is(unicode.Bidi_Control, c) || c == '\u2028' || c == '\u2029' {
			return ' '
		}
		return c
	}, strings.ToValidUTF8(text, string(utf8.RuneError)))
}

// clip bounds what an error quotes of a peer's bytes.
func clip(b []byte) []byte {
	return b[:min(len(b), 80)]
}
