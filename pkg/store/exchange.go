package store

import (
	"context"
	"encoding/binary"
	"fmt"
	"sync"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgtype"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/postrider/postrider/pkg/mail"
)

// exchange is statements of the hot path with their parameters: one write,
// one wait, one implicit transaction. pgx's Batch does the same, with a plan
// to encode each element and a plan to scan each field, and it cannot send
// the rows of a COPY along (docs/performance.md).
//
// Whatever is written behind a statement with large results must be small:
// nothing is read before all is written.
type exchange struct {
	copyMessage
	statements []hotStatement
}

// hotStatement is one statement of an exchange.
type hotStatement struct {
	name, sql string
	row       func(fields [][]byte) // called for each row of the result; the fields are valid until it returns
}

var exchanges = sync.Pool{New: func() any { return new(exchange) }}

func newExchange() *exchange {
	x := exchanges.Get().(*exchange)
	x.buf, x.statements = x.buf[:0], x.statements[:0]
	return x
}

func (x *exchange) free() {
	clear(x.statements)
	if cap(x.buf) <= 16<<20 { // an unusual group does not keep its memory
		exchanges.Put(x)
	}
}

// call adds a statement, which is prepared under its name once for each
// connection. bind appends so many parameters.
func (x *exchange) call(st hotStatement, params int, bind func()) {
	x.statements = append(x.statements, st)
	start := x.open('B')
	x.buf = append(x.buf, 0) // the unnamed portal
	x.buf = append(x.buf, st.name...)
	x.buf = append(x.buf, 0, 0, 1, 0, 1) // all parameters are binary
	x.buf = binary.BigEndian.AppendUint16(x.buf, uint16(params))
	bind()
	x.buf = append(x.buf, 0, 1, 0, 1) // so are all results
	x.close(start)
	start = x.open('E')
	x.buf = append(x.buf, 0, 0, 0, 0, 0) // the portal; all rows
	x.close(start)
}

// copyIn adds a COPY, which is prepared likewise, with its rows.
func (x *exchange) copyIn(name, sql string, rows func()) {
	x.call(hotStatement{name: name, sql: sql}, 0, func() {})
	start := x.data()
	rows()
	x.done(start)
}

// array appends a parameter that is an array of a type, whose n elements each
// appends.
func (c *copyMessage) array(oid uint32, n int, each func(i int)) {
	start := len(c.buf)
	c.buf = append(c.buf, 0, 0, 0, 0)
	dimensions := min(n, 1)
	c.buf = binary.BigEndian.AppendUint32(c.buf, uint32(dimensions))
	c.buf = append(c.buf, 0, 0, 0, 1) // there may be nulls
	c.buf = binary.BigEndian.AppendUint32(c.buf, oid)
	if dimensions > 0 {
		c.buf = binary.BigEndian.AppendUint32(c.buf, uint32(n))
		c.buf = append(c.buf, 0, 0, 0, 1) // the first index
	}
	for i := range n {
		each(i)
	}
	binary.BigEndian.PutUint32(c.buf[start:], uint32(len(c.buf)-start-4))
}

// worker appends a worker, or null.
func (c *copyMessage) worker(id *mail.WorkerID) {
	if id == nil {
		c.null()
		return
	}
	c.int4(int32(*id))
}

// ids appends an array of ids.
func (c *copyMessage) ids(n int, id func(i int) mail.QueueID) {
	c.array(pgtype.UUIDOID, n, func(i int) { c.uuid(id(i)) })
}

// int4s appends an array of integers.
func (c *copyMessage) int4s(n int, v func(i int) int32) {
	c.array(pgtype.Int4OID, n, func(i int) { c.int4(v(i)) })
}

// texts appends an array of texts.
func (c *copyMessage) texts(n int, v func(i int) string) {
	c.array(pgtype.TextOID, n, func(i int) { c.text(v(i)) })
}

// ordinal reads the index, from 0, that WITH ORDINALITY has given a row.
func ordinal(field []byte) int { return int(binary.BigEndian.Uint64(field)) - 1 }

// timestamp reads a timestamptz.
func timestamp(field []byte) time.Time {
	return pgEpoch.Add(time.Duration(binary.BigEndian.Uint64(field)) * time.Microsecond)
}

// run sends the exchange on a connection of the pool and hands each row to
// its statement.
//
// A pooled connection may have died since it was used last. As long as no
// byte has left it is safe to take another.
func (x *exchange) run(ctx context.Context, pool *pgxpool.Pool) error {
	x.close(x.open('S'))
	return onConn(ctx, pool, x.on)
}

// within is run inside a transaction.
func (x *exchange) within(ctx context.Context, conn *pgx.Conn) error {
	x.close(x.open('S'))
	return x.on(ctx, conn)
}

func (x *exchange) on(ctx context.Context, conn *pgx.Conn) error {
	for i := range x.statements {
		st := &x.statements[i]
		if _, err := conn.Prepare(ctx, st.name, st.sql); err != nil {
			if conn.IsClosed() {
				err = fmt.Errorf("%w: %w", errNotSent, err)
			}
			return err
		}
	}
	return roundTrip(ctx, conn.PgConn(), x.buf, func(statement int, fields [][]byte) {
		if row := x.statements[statement].row; row != nil {
			row(fields)
		}
	})
}
