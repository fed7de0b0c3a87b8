package smtp

import (
	"errors"
	"io"
)

// NewlineReader reads content and makes a CRLF of each LF that has no CR
// before it: for clients that end lines so. A CR without an LF cannot be
// mended; then the end is ErrBareNewline instead of io.EOF.
type NewlineReader struct {
	r       io.Reader
	cr      bool // the last octet was a CR
	bare    bool // there was a CR without an LF
	pending bool // an LF is still to come
}

// NewNewlineReader returns a reader of r.
func NewNewlineReader(r io.Reader) *NewlineReader { return &NewlineReader{r: r} }

// Read reads content. It reads no more of r than half of p, so that there is
// room for what it adds.
func (n *NewlineReader) Read(p []byte) (int, error) {
	if len(p) == 0 {
		return 0, nil
	}
	if n.pending {
		n.pending = false
		p[0] = '\n'
		return 1, nil
	}
	half := max(1, len(p)/2)
	from := p[len(p)-half:]
	m, err := n.r.Read(from)
	to := 0
	for _, c := range from[:m] { // to is never ahead of what is read
		n.bare = n.bare || n.cr && c != '\n'
		if c == '\n' && !n.cr {
			p[to] = '\r'
			if to++; to == len(p) { // p has room for one octet
				n.pending = true
				break
			}
		}
		n.cr = c == '\r'
		p[to] = c
		to++
	}
	if errors.Is(err, io.EOF) && (n.bare || n.cr) {
		err = ErrBareNewline
	}
	if n.pending && err != nil { // it comes again
		err = nil
	}
	return to, err
}
