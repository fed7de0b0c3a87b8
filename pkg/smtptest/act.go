package smtptest

import (
	"errors"
	"fmt"
	"io"
	"os"
	"strconv"
	"strings"
	"time"
)

// Act is one piece of behaviour at a phase. It returns the code of the reply
// that it gave, by which the dialogue goes on, or 0 if the connection is over.
type Act func(*session) int

// Reply gives a reply of one or more lines: RFC 5321 §4.2. An enhanced code
// is part of the text.
func Reply(code int, lines ...string) Act {
	if len(lines) == 0 {
		lines = []string{"as scripted"}
	}
	var b strings.Builder
	for i, line := range lines {
		mark := "-"
		if i == len(lines)-1 {
			mark = " "
		}
		fmt.Fprintf(&b, "%d%s%s\r\n", code, mark, line)
	}
	return Raw(b.String())
}

// Offer is the reply to EHLO of a host that offers these keywords.
func Offer(keywords ...string) Act {
	return func(s *session) int {
		s.offers = keywords
		return Reply(250, append([]string{s.server.script.Hostname}, keywords...)...)(s)
	}
}

// Raw sends the bytes as they are. The dialogue goes on by the code at the
// start of the first line; without one it goes on as after a refusal.
func Raw(text string) Act {
	return func(s *session) int {
		s.write(text)
		code, err := strconv.Atoi(text[:min(3, len(text))])
		if err != nil || code == 0 {
			return 500
		}
		return code
	}
}

// As does do and goes on as after a reply with the code.
func As(code int, do Act) Act {
	return func(s *session) int {
		if do(s) == 0 {
			return 0
		}
		return code
	}
}

// Drop closes the connection.
func Drop() Act {
	return func(s *session) int {
		s.flush()
		s.close()
		return 0
	}
}

// Reset closes the connection with a TCP RST.
func Reset() Act {
	return func(s *session) int {
		s.flush()
		s.reset()
		return 0
	}
}

// Stall says nothing and reads on until the client hangs up.
func Stall() Act {
	return func(s *session) int {
		s.flush()
		_, err := io.Copy(io.Discard, s.r)
		s.note(err)
		return 0
	}
}

// Freeze neither reads nor writes until the server is closed, so that the
// client's writes block once the buffers in between are full.
func Freeze() Act {
	return func(s *session) int {
		s.flush()
		<-s.server.closing
		return 0
	}
}

// Drain reads and drops what the client sends, for so long at most. It gives
// no reply, so put it into Then.
func Drain(limit time.Duration) Act {
	return func(s *session) int {
		s.flush()
		err := s.tcp.SetReadDeadline(time.Now().Add(limit))
		if err == nil {
			_, err = io.Copy(io.Discard, s.r)
		}
		if !errors.Is(err, os.ErrDeadlineExceeded) {
			s.note(err)
		}
		return noReply
	}
}

// Endless sends the text again and again until the client hangs up.
func Endless(text string) Act {
	return func(s *session) int {
		for s.wrote(text) {
			s.flush()
		}
		return 0
	}
}

// Bytewise gives the reply of do one byte at a time, each in a segment of
// its own.
func Bytewise(do Act) Act { return Drip(0, do) }

// Drip gives the reply of do one byte per interval.
func Drip(interval time.Duration, do Act) Act {
	return func(s *session) int {
		s.flush()
		before := s.pace
		s.pace = &interval
		code := do(s)
		s.pace = before
		return code
	}
}

// Later does do after a while, or gives up when the server is closed.
func Later(wait time.Duration, do Act) Act {
	return func(s *session) int {
		s.flush()
		if !s.server.pause(wait) {
			return 0
		}
		return do(s)
	}
}

// Await does do once the channel is closed: a test can hold a connection at
// one point for as long as it needs.
func Await(release <-chan struct{}, do Act) Act {
	return func(s *session) int {
		s.flush()
		select {
		case <-release:
			return do(s)
		case <-s.server.closing:
			return 0
		}
	}
}

// noReply is the code of an act that says nothing and leaves it to the next.
const noReply = 1

// Then does one act after the other and goes on by the code of the first
// reply, which holds also if a later one ended the connection.
func Then(acts ...Act) Act {
	return func(s *session) int {
		code := noReply
		for _, do := range acts {
			switch c := do(s); {
			case c == 0 && code == noReply:
				return 0
			case c == 0:
				s.over = true
				return code
			case code == noReply:
				code = c
			}
		}
		return code
	}
}

// AfterBytes reads so many octets of the client before do; at Body it breaks
// off in the middle of the content.
func AfterBytes(n int64, do Act) Act {
	return func(s *session) int {
		if _, err := io.CopyN(io.Discard, s.r, n); err != nil {
			s.note(err)
			return 0
		}
		return do(s)
	}
}

// Forget drops what the client has sent ahead of the reply, as hosts do that
// offer PIPELINING and throw their input away. It gives no reply, so put it
// into Then.
func Forget() Act {
	return func(s *session) int {
		_, err := s.r.Discard(s.r.Buffered())
		if err != nil {
			s.note(err)
		}
		return noReply
	}
}

// Signal calls do: a test can act at one exact point. It gives no reply, so
// put it into Then before one.
func Signal(do func()) Act {
	return func(*session) int {
		do()
		return noReply
	}
}
