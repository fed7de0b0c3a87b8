package store

import (
	"encoding/binary"
	"net/netip"
	"time"

	"github.com/postrider/postrider/pkg/mail"
)

// copyMessage builds frontend messages of Postgres's wire protocol: statements,
// rows in the binary COPY format, and parameters, whose format is the same.
// pgx's CopyFrom cannot send several COPYs and their COMMIT in one write, which
// is what makes the accept cheap (docs/performance.md).
type copyMessage struct{ buf []byte }

// pgEpoch is the zero of a binary timestamptz.
var pgEpoch = time.Date(2000, 1, 1, 0, 0, 0, 0, time.UTC)

// open begins a message of the given type; close writes its length.
func (c *copyMessage) open(kind byte) (start int) {
	c.buf = append(c.buf, kind, 0, 0, 0, 0)
	return len(c.buf) - 4
}

func (c *copyMessage) close(start int) {
	binary.BigEndian.PutUint32(c.buf[start:], uint32(len(c.buf)-start))
}

// data begins the CopyData message of one COPY, done ends it.
func (c *copyMessage) data() (start int) {
	start = c.open('d')
	c.buf = append(c.buf, "PGCOPY\n\xff\r\n\x00"...)
	c.buf = append(c.buf, 0, 0, 0, 0, 0, 0, 0, 0) // no flags, no header extension
	return start
}

func (c *copyMessage) done(start int) {
	c.buf = append(c.buf, 0xff, 0xff) // end of rows
	c.close(start)
	c.close(c.open('c')) // CopyDone
}

func (c *copyMessage) row(fields int) { c.buf = binary.BigEndian.AppendUint16(c.buf, uint16(fields)) }

func (c *copyMessage) null() { c.buf = append(c.buf, 0xff, 0xff, 0xff, 0xff) }

func (c *copyMessage) uuid(id mail.QueueID) {
	c.buf = append(c.buf, 0, 0, 0, 16)
	c.buf = append(c.buf, id[:]...)
}

func (c *copyMessage) int2(v int16) {
	c.buf = append(c.buf, 0, 0, 0, 2)
	c.buf = binary.BigEndian.AppendUint16(c.buf, uint16(v))
}

func (c *copyMessage) int4(v int32) {
	c.buf = append(c.buf, 0, 0, 0, 4)
	c.buf = binary.BigEndian.AppendUint32(c.buf, uint32(v))
}

func (c *copyMessage) int8(v int64) {
	c.buf = append(c.buf, 0, 0, 0, 8)
	c.buf = binary.BigEndian.AppendUint64(c.buf, uint64(v))
}

func (c *copyMessage) bool(v bool) {
	b := byte(0)
	if v {
		b = 1
	}
	c.buf = append(c.buf, 0, 0, 0, 1, b)
}

func (c *copyMessage) time(t time.Time) { c.int8(t.Sub(pgEpoch).Microseconds()) }

func (c *copyMessage) timeOrNull(t time.Time) {
	if t.IsZero() {
		c.null()
		return
	}
	c.time(t)
}

func (c *copyMessage) interval(d time.Duration) {
	c.buf = append(c.buf, 0, 0, 0, 16)
	c.buf = binary.BigEndian.AppendUint64(c.buf, uint64(d.Microseconds()))
	c.buf = append(c.buf, 0, 0, 0, 0, 0, 0, 0, 0) // no days, no months
}

// address appends the text of an address and port, empty if there is none.
func (c *copyMessage) address(a netip.AddrPort) {
	start := len(c.buf)
	c.buf = append(c.buf, 0, 0, 0, 0)
	if a.IsValid() {
		c.buf = a.AppendTo(c.buf)
	}
	binary.BigEndian.PutUint32(c.buf[start:], uint32(len(c.buf)-start-4))
}

func (c *copyMessage) text(s string) {
	c.buf = binary.BigEndian.AppendUint32(c.buf, uint32(len(s)))
	c.buf = append(c.buf, s...)
}

func (c *copyMessage) bytes(b []byte) {
	c.buf = binary.BigEndian.AppendUint32(c.buf, uint32(len(b)))
	c.buf = append(c.buf, b...)
}
