package smtptest

import (
	"io"
	"strconv"
	"strings"
)

// maxChunk bounds what a test can make us hold.
const maxChunk = 64 << 20

// bdat answers BDAT: RFC 3030 §2.
func (s *session) bdat(arg string) {
	text, end, more := strings.Cut(arg, " ")
	size, err := strconv.Atoi(text)
	last := more && strings.EqualFold(end, "LAST")
	if err != nil || size < 0 || size > maxChunk || more && !last {
		s.complain("malformed BDAT")
		s.reply(501, "5.5.4 malformed")
		s.over = true
		return
	}
	if !s.offered("CHUNKING") {
		s.complain("BDAT was not offered")
	}
	// Whatever we think of it, the chunk follows: RFC 3030 §2.
	s.flush()
	if s.tx != nil && last && s.act(Body, s.subject(), "", func() int { return 354 }) == 0 {
		s.tx.DataIsBroken = true
		s.finish(0)
		return
	}
	chunk := make([]byte, size)
	if n, err := io.ReadFull(s.r, chunk); err != nil {
		s.note(err)
		if s.tx != nil {
			s.tx.DataIsBroken, s.content = true, append(s.content, chunk[:n]...)
			s.finish(0)
		}
		return
	}
	if s.tx == nil {
		s.outOfTurn("BDAT")
		return
	}
	accepted := len(s.tx.Accepted()) > 0
	if !accepted && !s.offered("PIPELINING") {
		s.complain("BDAT without an accepted recipient")
	}
	s.content, s.chunked = append(s.content, chunk...), true
	if !last {
		s.act(Bdat, s.where, "", func() int {
			if !accepted {
				return s.reply(503, "5.5.1 no valid recipients")
			}
			return s.reply(250, "2.0.0 "+text+" octets")
		})
		return
	}
	s.where = "content"
	if !strings.Contains(strings.ToUpper(s.tx.Params), "BODY=BINARYMIME") {
		s.checkNewlines()
	}
	s.tx.Chunked = true
	s.taken(accepted)
}

// eachTaken answers the end of the content as LMTP: once for each accepted
// recipient, RFC 2033 §4.2.
func (s *session) eachTaken() {
	worst := 0
	for i := range s.tx.Recipients {
		r := &s.tx.Recipients[i]
		if r.Code/100 != 2 || s.over {
			continue
		}
		code := s.act(Dot, r.Path, r.Path, func() int { return s.reply(250, "2.0.0 in the box of "+r.Path) })
		if r.Code = code; code/100 == 2 || worst == 0 {
			worst = code
		}
		s.flush()
	}
	s.finish(worst)
}
