package smtptest

import (
	"bufio"
	"bytes"
	"crypto/sha256"
	"errors"
	"slices"
	"strconv"
	"strings"
	"time"
)

// mail answers MAIL.
func (s *session) mail(line string) {
	path, params, ok := cutPath(line, "MAIL FROM:")
	if !ok {
		s.complain("malformed MAIL")
	}
	if !s.greeted {
		s.complain("MAIL before EHLO")
	}
	if s.tx != nil {
		s.complain("MAIL inside a transaction")
		s.finish(0)
	}
	body := "8BITMIME"
	if strings.Contains(strings.ToUpper(params), "BODY=BINARYMIME") {
		body = "BINARYMIME"
	}
	s.checkParams(params, map[string]string{"SIZE": "SIZE", "BODY": body, "SMTPUTF8": "SMTPUTF8", "RET": "DSN", "ENVID": "DSN",
		"BY": "DELIVERBY", "MT-PRIORITY": "MT-PRIORITY", "REQUIRETLS": "REQUIRETLS"})
	if !ascii(line) && !slices.Contains(strings.Fields(strings.ToUpper(params)), "SMTPUTF8") {
		s.complain("octets over 127 in MAIL without SMTPUTF8")
	}
	s.number++
	s.content, s.chunked = s.content[:0], false
	tx := &Transaction{Connection: s.log.ID, Hello: s.hello, TLS: s.secure, User: s.user, ReversePath: path, Params: params, MailAt: time.Now()}
	code := s.act(Mail, line, path, func() int {
		if limit := s.server.script.MaxSize; limit > 0 && announcedSize(params) > limit {
			return s.reply(552, "5.3.4 too big")
		}
		return s.reply(250, "2.1.0 ok")
	})
	if s.tx = tx; code/100 != 2 {
		s.finish(0)
	}
}

// rcpt answers RCPT.
func (s *session) rcpt(line string) {
	path, params, ok := cutPath(line, "RCPT TO:")
	if !ok || path == "" {
		s.complain("malformed RCPT")
	}
	s.checkParams(params, map[string]string{"NOTIFY": "DSN", "ORCPT": "DSN"})
	if s.tx == nil {
		// RFC 2920 §3.1: a client that pipelines learns too late that MAIL
		// was refused.
		s.outOfTurn("RCPT")
		return
	}
	if !ascii(line) && !slices.Contains(strings.Fields(strings.ToUpper(s.tx.Params)), "SMTPUTF8") {
		s.complain("octets over 127 in RCPT without SMTPUTF8")
	}
	code := s.act(Rcpt, line, path, func() int { return s.reply(250, "2.1.5 ok") })
	s.tx.Recipients = append(s.tx.Recipients, Recipient{Path: path, Params: params, Code: code})
}

// outOfTurn refuses a command that has no transaction to belong to. Only a
// client that pipelines can send it in good faith.
func (s *session) outOfTurn(verb string) {
	if !s.offered("PIPELINING") {
		s.complain("%s without MAIL", verb)
	}
	s.reply(503, "5.5.1 need MAIL")
}

// data answers DATA and reads the content.
func (s *session) data() {
	if s.tx == nil {
		s.outOfTurn("DATA")
		return
	}
	accepted := len(s.tx.Accepted()) > 0
	if !accepted && !s.offered("PIPELINING") {
		s.complain("DATA without an accepted recipient")
	}
	code := s.act(Data, s.where, "", func() int {
		if !accepted {
			return s.reply(554, "5.5.1 no valid recipients")
		}
		return s.reply(354, "go ahead")
	})
	s.flush()
	if s.over || code != 354 {
		if s.tx != nil {
			s.finish(0) // RFC 5321 §3.3: a failed DATA ends the transaction
		}
		return
	}
	if s.act(Body, s.subject(), "", func() int { return 354 }) == 0 || s.over || !s.readContent() {
		s.tx.DataIsBroken, s.over = true, true
		s.finish(0)
		return
	}
	s.taken(accepted)
}

// taken answers the end of the content.
func (s *session) taken(accepted bool) {
	s.tx.DotAt = time.Now()
	s.digest()
	if s.r.Buffered() > 0 && !s.offered("PIPELINING") {
		s.complain("%d octets sent behind the final dot", s.r.Buffered())
	}
	if s.server.script.LMTP {
		s.eachTaken()
		return
	}
	code := s.act(Dot, s.subject(), s.tx.ReversePath, func() int {
		if limit := s.server.script.MaxSize; limit > 0 && s.tx.Size > limit {
			return s.reply(552, "5.3.4 too big")
		}
		if !accepted {
			return s.reply(554, "5.5.1 no valid recipients")
		}
		return s.reply(250, "2.0.0 queued as "+strconv.Itoa(s.log.ID)+"."+strconv.Itoa(s.number))
	})
	s.finish(code) // before the reply leaves: who has it finds the log complete
	s.flush()
}

// readContent reads up to the final dot: RFC 5321 §4.5.2. It reports false
// if the connection ended before.
func (s *session) readContent() bool {
	s.where = "content"
	s.content = s.content[:0]
	defer s.checkNewlines()
	for lineStart := true; ; lineStart = bytes.HasSuffix(s.content, []byte("\r\n")) {
		part, err := s.r.ReadSlice('\n')
		if lineStart && string(part) == ".\r\n" {
			return true
		}
		if lineStart && len(part) > 0 && part[0] == '.' {
			part = part[1:]
		}
		s.content = append(s.content, part...)
		if err != nil && !errors.Is(err, bufio.ErrBufferFull) {
			return false
		}
	}
}

// checkNewlines complains of content whose lines do not all end in CRLF.
func (s *session) checkNewlines() {
	c := s.content
	for i := 0; ; i++ {
		next := bytes.IndexAny(c[i:], "\r\n")
		if next < 0 {
			return
		}
		i += next
		if c[i] == '\n' || i+1 < len(c) && c[i+1] != '\n' {
			s.complain("bare CR or LF after %q", c[max(0, i-40):i])
			return
		}
		if i++; i >= len(c) {
			return // broken off between CR and LF
		}
	}
}

// digest notes what there is to know of the content.
func (s *session) digest() {
	t := s.tx
	t.Size, t.SHA256 = int64(len(s.content)), sha256.Sum256(s.content)
	t.EightBit = !ascii(string(s.content))
	for line := range bytes.SplitSeq(s.content, []byte("\r\n")) {
		t.LongestLine = max(t.LongestLine, len(line))
	}
	if t.EightBit && !s.offered("8BITMIME") && !strings.Contains(strings.ToUpper(t.Params), "BODY=BINARYMIME") {
		s.complain("octets over 127 in the content without 8BITMIME")
	}
	if t.EightBit && s.offered("8BITMIME") && !strings.Contains(strings.ToUpper(t.Params), "BODY=BINARYMIME") && !strings.Contains(strings.ToUpper(t.Params), "BODY=8BITMIME") {
		s.complain("octets over 127 in the content without BODY=8BITMIME")
	}
	if s.server.script.Label != nil {
		t.Label = s.server.script.Label(s.content)
	}
	if !s.server.script.Discard {
		t.Content = bytes.Clone(s.content)
	}
}

// finish puts the transaction into the log. Code is the reply to the final
// dot, 0 if it did not come to that.
func (s *session) finish(code int) {
	tx := s.tx
	s.tx = nil
	tx.Code = code
	s.server.update(func() {
		s.server.transactions = append(s.server.transactions, *tx)
		if tx.Delivered() {
			s.server.taken++
		}
	})
}

// subject is what a rule at Body or Dot matches.
func (s *session) subject() string {
	words := []string{s.tx.ReversePath}
	for _, r := range s.tx.Recipients {
		words = append(words, r.Path)
	}
	return strings.Join(words, " ")
}

// checkParams complains of parameters that no offered extension defines.
func (s *session) checkParams(params string, extension map[string]string) {
	for _, p := range strings.Fields(params) {
		word, _, _ := strings.Cut(strings.ToUpper(p), "=")
		if ext, known := extension[word]; !known || !s.offered(ext) {
			s.complain("parameter %s was not offered", word)
		}
	}
}

// cutPath takes a MAIL or RCPT command apart. A ">" inside a quoted
// local-part does not end the path.
func cutPath(line, command string) (path, params string, ok bool) {
	if len(line) < len(command) || !strings.EqualFold(line[:len(command)], command) {
		return "", "", false
	}
	rest, ok := strings.CutPrefix(line[len(command):], "<")
	if !ok {
		return "", "", false
	}
	for i, quoted := 0, false; i < len(rest); i++ {
		switch {
		case rest[i] == '\\' && quoted:
			i++
		case rest[i] == '"':
			quoted = !quoted
		case rest[i] == '>' && !quoted:
			path, params = rest[:i], rest[i+1:]
			spaced := params == "" || params[0] == ' ' && params[len(params)-1] != ' '
			return path, strings.TrimPrefix(params, " "), spaced
		}
	}
	return "", "", false
}

func announcedSize(params string) int64 {
	for _, p := range strings.Fields(params) {
		if v, ok := strings.CutPrefix(strings.ToUpper(p), "SIZE="); ok {
			n, err := strconv.ParseInt(v, 10, 64)
			if err != nil {
				return 0
			}
			return n
		}
	}
	return 0
}

func ascii(s string) bool {
	for i := range len(s) {
		if s[i] >= 0x80 {
			return false
		}
	}
	return true
}
