package smtpclient

import (
	"errors"
	"fmt"
	"io"
	"strconv"
	"time"

	"github.com/postrider/postrider/pkg/mail"
	"github.com/postrider/postrider/pkg/smtp"
)

// content sends the content, with its end, and reads the last reply.
func (x *sending) content() {
	if err := x.write(); err != nil {
		x.hungUp(mail.PhaseBody, err)
		return
	}
	x.sentAt = time.Now()
	if x.lmtp {
		x.eachReply()
		return
	}
	reply, err := x.await(mail.PhaseDot, x.timeouts.Dot)
	switch {
	case err != nil:
		x.end(Answer{Phase: mail.PhaseDot, Err: fault(x.ctx, err), Uncertain: true})
	case reply.Code/100 == 3:
		x.end(Answer{Phase: mail.PhaseDot, Reply: reply, Err: ErrOutOfStep, Uncertain: true})
	case reply.Code == 421:
		x.end(Answer{Phase: mail.PhaseDot, Reply: reply})
	default:
		x.owesReset = !reply.Positive()
		x.all(Answer{Phase: mail.PhaseDot, Reply: reply})
	}
}

// eachReply reads the replies of an LMTP host to the end of the content: one
// for each recipient that it accepted, in their order (RFC 2033 §4.2). What is
// missing is uncertain, for the others may have the message.
func (x *sending) eachReply() {
	for i := range x.Answers {
		if x.Answers[i].Phase != "" {
			continue
		}
		reply, err := x.await(mail.PhaseDot, x.timeouts.Dot)
		switch {
		case err != nil:
			x.end(Answer{Phase: mail.PhaseDot, Err: fault(x.ctx, err), Uncertain: true})
			return
		case reply.Code/100 == 3:
			x.end(Answer{Phase: mail.PhaseDot, Reply: reply, Err: ErrOutOfStep, Uncertain: true})
			return
		}
		x.Answers[i] = Answer{Phase: mail.PhaseDot, Reply: reply}
		x.owesReset = x.owesReset || !reply.Positive()
	}
}

// write writes the content and what ends it: the final dot, or the last octet
// of the last chunk. After an error that has not left as a whole, so the host
// cannot have taken the message.
func (x *sending) write() error {
	x.out.timeout = x.timeouts.Block
	x.owesReset = false
	if x.r.Buffered() > 0 {
		return ErrOutOfStep // taken for the reply to the dot it would lose mail
	}
	if x.byChunk() {
		return x.writeChunk()
	}
	w := smtp.NewDotWriter(x.w)
	if err := x.copyTo(w); err != nil {
		return err
	}
	if err := x.beforeDot(); err != nil {
		return err
	}
	if err := w.Close(); err != nil {
		return err
	}
	return x.w.Flush()
}

func (x *sending) beforeDot() error {
	if x.t.BeforeDot != nil {
		if err := x.t.BeforeDot(); err != nil {
			return fmt.Errorf("%w: %w", ErrWithheld, err)
		}
	}
	return nil
}

// byChunk reports whether the content goes by BDAT (RFC 3030), which needs no
// look at each line on either side. What is converted as it is streamed has a
// size that nobody knows before.
func (x *sending) byChunk() bool { return x.offers.chunking && !x.converting }

// writeChunk writes the content as one chunk, the last. Its last octet is what
// the final dot is for DATA.
func (x *sending) writeChunk() error {
	size := x.sizeBytes()
	header := append(strconv.AppendInt([]byte("BDAT "), size, 10), " LAST\r\n"...)
	c := &chunkWriter{w: x.w, left: size, text: !x.binary}
	if x.t.Content != nil && c.text {
		// What would be given up in the middle costs a connection.
		c.check.Look(x.t.Content)
		if err := c.check.Err(); err != nil {
			return err
		}
		c.text = false
	}
	if _, err := x.w.Write(header); err != nil {
		return err
	}
	if err := x.copyTo(c); err != nil {
		return err
	}
	if err := c.complete(); err != nil {
		return err
	}
	if err := x.beforeDot(); err != nil {
		return err
	}
	if _, err := x.w.Write(c.last); err != nil {
		return err
	}
	return x.w.Flush()
}

// chunkWriter passes a chunk on, but for its last octet.
type chunkWriter struct {
	w     io.Writer
	left  int64
	last  []byte
	text  bool // it must be lines
	check smtp.LineCheck
}

// Write fails with ErrContent if there is more than was announced, and with
// smtp.ErrBareNewline behind text that is not lines: the connection must be
// dropped without the last octet.
func (c *chunkWriter) Write(p []byte) (int, error) {
	if c.left -= int64(len(p)); c.left < 0 {
		return 0, fmt.Errorf("%w: it is longer than it was", ErrContent)
	}
	if c.text {
		c.check.Look(p)
	}
	if c.left == 0 && len(p) > 0 {
		c.last = append(c.last, p[len(p)-1])
		p = p[:len(p)-1]
	}
	return c.w.Write(p)
}

func (c *chunkWriter) complete() error {
	if c.left > 0 {
		return fmt.Errorf("%w: it is shorter than it was", ErrContent)
	}
	return c.check.Err()
}

// copyTo copies the content, as it is or converted, to w.
func (x *sending) copyTo(w io.Writer) error {
	if content := x.t.Content; content != nil {
		// The last of it waits in the buffer and leaves with the dot.
		last := max(len(content)-writeBuffer/2, 0)
		for _, part := range [][]byte{content[:last], content[last:]} {
			if _, err := w.Write(part); err != nil {
				return err
			}
		}
		return nil
	}
	content, err := x.open()
	if err != nil {
		return err
	}
	defer func() { _ = content.Close() }() // all was read, or the transaction is given up
	if x.converting {
		return x.plan.Convert(w, failing{content})
	}
	if x.copying == nil {
		x.copying = make([]byte, maxBlock)
	}
	for {
		n, err := content.Read(x.copying)
		if n > 0 {
			if _, err := w.Write(x.copying[:n]); err != nil {
				return err
			}
		}
		switch {
		case errors.Is(err, io.EOF):
			return nil
		case err != nil:
			return fmt.Errorf("%w: %w", ErrContent, err)
		}
	}
}

// failing marks errors of the content as its own.
type failing struct{ io.Reader }

func (f failing) Read(p []byte) (int, error) {
	n, err := f.Reader.Read(p)
	if err != nil && !errors.Is(err, io.EOF) {
		err = fmt.Errorf("%w: %w", ErrContent, err)
	}
	return n, err
}
