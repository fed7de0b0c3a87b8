package smtp

import (
	"bufio"
	"bytes"
	"errors"
	"io"
)

// ErrBareNewline says that content has a CR or an LF that is not part of a
// CRLF: RFC 5321 §2.3.8.
var ErrBareNewline = errors.New("bare CR or LF in content")

var (
	crlf      = []byte("\r\n")
	dot       = []byte(".")
	endOfData = []byte(".\r\n")
)

// dotState is what the octets before the next one were.
type dotState uint8

const (
	lineStart  dotState = iota // CRLF, or the beginning of the data
	inLine                     // anything else
	afterCR                    // a CR inside a line
	afterDot                   // DotReader: the dot that begins a line, not content
	afterDotCR                 // DotReader: such a dot and a CR
	afterLF                    // DotReader: an LF that is no line end of ours, and may be one of the client's
)

// scanLine returns the length of the line that begins or goes on in s, its
// LF included, the state behind it, and whether it has a CR or LF that is no
// line end. It takes the states up to afterCR. s is not empty.
func scanLine(state dotState, s []byte) (n int, next dotState, bare bool) {
	i := bytes.IndexByte(s, '\n')
	switch {
	case i == 0 && state == afterCR:
		return 1, lineStart, false
	case i == 0:
		return 1, inLine, true
	case i > 0:
		bare = state == afterCR || bytes.IndexByte(s[:i], '\r') != i-1
		if s[i-1] == '\r' {
			return i + 1, lineStart, bare
		}
		return i + 1, inLine, true
	}
	j := bytes.IndexByte(s, '\r')
	bare = state == afterCR || j >= 0 && j < len(s)-1
	if s[len(s)-1] == '\r' {
		return len(s), afterCR, bare
	}
	return len(s), inLine, bare
}

// LineCheck looks for a CR or LF that is no line end in content that comes in
// blocks, such as the chunks of BDAT. The zero value is at the beginning.
type LineCheck struct {
	state dotState
	bare  bool
}

// Look takes the next block.
func (c *LineCheck) Look(p []byte) {
	for len(p) > 0 {
		n, next, bare := scanLine(c.state, p)
		c.state = next
		c.bare = c.bare || bare
		p = p[n:]
	}
}

// Err returns ErrBareNewline if the blocks up to here, as the whole of the
// content, have a bare CR or LF.
func (c *LineCheck) Err() error {
	if c.bare || c.state == afterCR {
		return ErrBareNewline
	}
	return nil
}

// DotWriter writes content as the client of DATA sends it: a line that
// begins with a dot gets one more (RFC 5321 §4.5.2), and Close ends the data.
// All other octets pass unchanged, in blocks as large as they come.
type DotWriter struct {
	w     io.Writer
	state dotState
	err   error
}

// NewDotWriter returns a DotWriter on w. Give it a buffered writer: a dot
// that is stuffed is a write of its own.
func NewDotWriter(w io.Writer) *DotWriter { return &DotWriter{w: w} }

// Write writes content. It fails with ErrBareNewline at a line with a CR or
// LF that is no line end, before that line is written: a careless server
// could take what follows for the end of data, so the connection must be
// dropped without the final dot. An error stays.
func (d *DotWriter) Write(p []byte) (int, error) {
	done, at := 0, 0 // p[:done] is written, p[:at] is looked at
	for at < len(p) && d.err == nil {
		if d.state == lineStart && p[at] == '.' {
			done += d.write(p[done:at])
			d.write(dot)
		}
		n, next, bare := scanLine(d.state, p[at:])
		if bare {
			done += d.write(p[done:at])
			d.fail(ErrBareNewline)
			return done, d.err
		}
		at += n
		d.state = next
	}
	done += d.write(p[done:at])
	return done, d.err
}

// Close ends the data: a CRLF when the content does not end with one, and
// the final dot. It does not flush or close the writer below. After a failed
// Write, or when the content ends with a CR, it fails and writes nothing.
func (d *DotWriter) Close() error {
	switch d.state {
	case afterCR:
		d.fail(ErrBareNewline)
	case inLine:
		d.write(crlf)
	}
	d.write(endOfData)
	return d.err
}

func (d *DotWriter) write(p []byte) int {
	if d.err != nil || len(p) == 0 {
		return 0
	}
	n, err := d.w.Write(p)
	d.err = err
	return n
}

func (d *DotWriter) fail(err error) {
	if d.err == nil {
		d.err = err
	}
}

// DotReader reads the content that follows the 354 reply to DATA, without
// the dots that RFC 5321 §4.5.2 adds. The data ends at CRLF.CRLF and at
// nothing else (§4.1.1.4): LF.LF or CR.CR inside is content, and makes the
// content invalid.
//
// The zero value is not ready: use Reset.
type DotReader struct {
	r       *bufio.Reader
	lenient bool
	state   dotState
	bare    bool
	err     error
}

// ResetLenient is Reset for a client that may end lines with an LF alone. A
// bare CR or LF is content then, of which NewlineReader makes what it can. The
// dots at the beginning of such lines are taken out; the data ends at
// CRLF.CRLF and at nothing else, as always.
func (d *DotReader) ResetLenient(r *bufio.Reader) { *d = DotReader{r: r, lenient: true} }

// Reset makes d read the data that begins at the next octet of r.
func (d *DotReader) Reset(r *bufio.Reader) { *d = DotReader{r: r} }

// Read reads content in blocks as large as p and the buffer of r allow. At
// the end of the data it returns io.EOF, or ErrBareNewline when there was a
// bare CR or LF anywhere. In both cases the stream was read to its real end,
// so the next octet of r begins the next command. A connection that ends
// earlier gives io.ErrUnexpectedEOF; another error of r is returned as it is.
func (d *DotReader) Read(p []byte) (int, error) {
	n := 0
	for n == 0 && len(p) > 0 && d.err == nil {
		if _, err := d.r.Peek(1); err != nil {
			d.err = unexpected(err)
			break
		}
		block, err := d.r.Peek(d.r.Buffered())
		if err != nil {
			d.err = err
			break
		}
		used, wrote := d.unstuff(p, block)
		n += wrote
		if _, err := d.r.Discard(used); err != nil {
			d.err = err
		}
	}
	if n > 0 || len(p) == 0 {
		return n, nil
	}
	return 0, d.err
}

// unstuff copies content from src to p until one of them is used up or the
// data ends. It returns how much of each it used.
func (d *DotReader) unstuff(p, src []byte) (used, wrote int) {
	for used < len(src) && wrote < len(p) && d.err == nil {
		c := src[used]
		switch {
		case d.state == lineStart && c == '.':
			d.state = afterDot
			used++
		case d.state == afterLF && c == '.':
			d.state = inLine
			used++
		case d.state == afterDot && c == '\r':
			d.state = afterDotCR
			used++
		case d.state == afterDot:
			d.state = inLine // the dot is taken out, the rest is content
		case d.state == afterDotCR && c == '\n':
			used++
			d.end()
		case d.state == afterDotCR: // a CR that is no line end
			d.bare = true
			d.state = inLine
			p[wrote] = '\r'
			wrote++
		default:
			n := d.copyPlain(p[wrote:], src[used:])
			used += n
			wrote += n
		}
	}
	return used, wrote
}

// copyPlain copies up to the next line that begins with a dot.
func (d *DotReader) copyPlain(p, src []byte) int {
	src = src[:min(len(src), len(p))]
	n := 0
	for n < len(src) && (d.state != lineStart && d.state != afterLF || src[n] != '.') {
		length, next, bare := scanLine(d.state, src[n:])
		d.state = next
		d.bare = d.bare || bare
		n += length
		if d.lenient && next == inLine && src[n-1] == '\n' {
			d.state = afterLF
		}
	}
	return copy(p, src[:n])
}

func (d *DotReader) end() {
	d.err = io.EOF
	if d.bare && !d.lenient {
		d.err = ErrBareNewline
	}
}

// unexpected turns the end of a stream into an error where more had to come.
func unexpected(err error) error {
	if errors.Is(err, io.EOF) {
		return io.ErrUnexpectedEOF
	}
	return err
}
