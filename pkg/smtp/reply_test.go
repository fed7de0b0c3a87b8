package smtp

import (
	"bufio"
	"errors"
	"io"
	"reflect"
	"slices"
	"strings"
	"testing"
	"testing/iotest"
	"unicode/utf8"

	"github.com/postrider/postrider/pkg/mail"
)

// RFC 5321 §4.2, §4.2.1, RFC 2034 §4.
func TestReadReply(t *testing.T) {
	tests := []struct {
		in   string
		want mail.Reply
		err  error
	}{
		{in: "250 OK\r\n", want: mail.Reply{Code: 250, Lines: []string{"OK"}}},
		{in: "250\r\n", want: mail.Reply{Code: 250, Lines: []string{""}}},
		{in: "250 \r\n", want: mail.Reply{Code: 250, Lines: []string{""}}},
		{in: "250 bare LF\n", want: mail.Reply{Code: 250, Lines: []string{"bare LF"}}},
		{in: "550 5.1.1 no such user\r\n", want: mail.Reply{Code: 550, Enhanced: mail.EnhancedCode{Class: 5, Subject: 1, Detail: 1}, Lines: []string{"no such user"}}},
		{in: "250 2.0.0\r\n", want: mail.Reply{Code: 250, Enhanced: mail.EnhancedCode{Class: 2}, Lines: []string{""}}},
		{
			in:   "250-mail.example\r\n250-SIZE 1000\r\n250 HELP\r\n",
			want: mail.Reply{Code: 250, Lines: []string{"mail.example", "SIZE 1000", "HELP"}},
		},
		{
			in:   "450-4.7.1 slow\r\n450 4.7.1 down\r\n",
			want: mail.Reply{Code: 450, Enhanced: mail.EnhancedCode{Class: 4, Subject: 7, Detail: 1}, Lines: []string{"slow", "down"}},
		},
		{ // the last line decides
			in:   "250-2.0.0 so\r\n550 but no\r\n",
			want: mail.Reply{Code: 550, Lines: []string{"so", "but no"}},
		},
		{ // a class that contradicts the code is text
			in:   "550 2.1.5 what\r\n",
			want: mail.Reply{Code: 550, Lines: []string{"2.1.5 what"}},
		},
		{in: "220 10.0.0.1 ready\r\n", want: mail.Reply{Code: 220, Lines: []string{"10.0.0.1 ready"}}},
		{in: "550 5.1.1234 x\r\n", want: mail.Reply{Code: 550, Lines: []string{"5.1.1234 x"}}},
		{in: "571 blocked\r\n", want: mail.Reply{Code: 571, Lines: []string{"blocked"}}},
		{in: "550 a\x00b\tc\rd\xff\r\n", want: mail.Reply{Code: 550, Lines: []string{"a b c d\ufffd"}}},
		{in: "550 grüße\r\n", want: mail.Reply{Code: 550, Lines: []string{"grüße"}}},

		{in: "", err: io.EOF},
		{in: "250", err: io.ErrUnexpectedEOF},
		{in: "250-a\r\n", err: io.ErrUnexpectedEOF},
		{in: "250-a\r\n250 b", err: io.ErrUnexpectedEOF},
		{in: "\r\n", err: ErrReply},
		{in: "25\r\n", err: ErrReply},
		{in: "hello\r\n", err: ErrReply},
		{in: "250ok\r\n", err: ErrReply},
		{in: "150 wait\r\n", err: ErrReply},
		{in: "650 odd\r\n", err: ErrReply},
		{in: "-50 odd\r\n", err: ErrReply},
		{in: "250-a\r\nx\r\n", err: ErrReply},
		{in: "550 " + strings.Repeat("x", 100000), err: io.ErrUnexpectedEOF},

		{in: strings.Repeat("\x00\xff", 4096), err: ErrReply}, // no line end has to come

		// What is too much is dropped, and the code of the last line counts.
		{in: "550 " + strings.Repeat("x", 2043) + "\r\n", want: mail.Reply{Code: 550, Lines: []string{strings.Repeat("x", 2000)}}},
		{in: "550 5.7.1 " + strings.Repeat("x", 100000) + "\r\n", want: mail.Reply{
			Code: 550, Enhanced: mail.EnhancedCode{Class: 5, Subject: 7, Detail: 1}, Lines: []string{strings.Repeat("x", 2000)}}},
		{
			in:   strings.Repeat("550-5.7.1 x\r\n", 500) + "550 5.1.1 no\r\n",
			want: mail.Reply{Code: 550, Enhanced: mail.EnhancedCode{Class: 5, Subject: 1, Detail: 1}, Lines: slices.Repeat([]string{"x"}, 128)},
		},
		{
			in: strings.Repeat("250-"+strings.Repeat("x", 1500)+"\r\n", 40) + "250 2.0.0 done\r\n",
			want: mail.Reply{Code: 250, Enhanced: mail.EnhancedCode{Class: 2},
				Lines: []string{strings.Repeat("x", 1500), strings.Repeat("x", 500)}},
		},
		{in: "550 x" + strings.Repeat("é", 1500) + "\r\n", want: mail.Reply{Code: 550, Lines: []string{"x" + strings.Repeat("é", 999)}}},
		{in: strings.Repeat("250-x\r\n", 200000), err: ErrReply},
		{in: "250 " + strings.Repeat("x", 2<<20), err: ErrReply},
	}
	for _, tt := range tests {
		for name, r := range map[string]io.Reader{
			"whole": strings.NewReader(tt.in), "bytes": iotest.OneByteReader(strings.NewReader(tt.in)),
		} {
			got, err := ReadReply(bufio.NewReader(r))
			if !reflect.DeepEqual(got, tt.want) || !errors.Is(err, tt.err) {
				t.Errorf("%s: ReadReply(%.60q) = %+v, %v; want %+v, %v", name, tt.in, got, err, tt.want, tt.err)
			}
		}
	}
}

// Replies of a pipelined group come in one block and are read one by one.
// What a reply says goes to logs and terminals: nothing in it moves the cursor
// or turns the direction of what follows.
func TestReplyTextIsSafe(t *testing.T) {
	const bad = "a\x1b[31m\x9b2J\u009b31m\x00\u2028b\u2029\u202e\u202d\u2066\u200f\u061c\x08\x7f\r c\u0436\u00fc"
	reply, err := ReadReply(bufio.NewReader(strings.NewReader("550-5.7.1 " + bad + "\r\n550 5.7.1 " + bad + "\r\n")))
	if err != nil {
		t.Fatal(err)
	}
	for _, line := range reply.Lines {
		if line != "a [31m\ufffd2J 31m  b          c\u0436\u00fc" {
			t.Errorf("%q", line)
		}
	}
}

func TestReadReplyGroup(t *testing.T) {
	r := bufio.NewReader(strings.NewReader("250 2.1.0 ok\r\n550-5.1.1 no\r\n550 5.1.1 user\r\n354 go\r\n"))
	for _, want := range []int{250, 550, 354} {
		if got, err := ReadReply(r); got.Code != want || err != nil {
			t.Fatalf("got %v, %v, want %d", got, err, want)
		}
	}
	if _, err := ReadReply(r); !errors.Is(err, io.EOF) {
		t.Fatalf("at the end: %v", err)
	}
}

// The words of a reply to EHLO are not dropped where those of another are.
func TestReadHelloReply(t *testing.T) {
	in := "250-mail.example\r\n" + strings.Repeat("250-X"+strings.Repeat("x", 99)+"\r\n", 100) + "250 STARTTLS\r\n"
	reply, err := ReadHelloReply(bufio.NewReader(strings.NewReader(in)))
	if err != nil || len(reply.Lines) != 102 || reply.Lines[101] != "STARTTLS" {
		t.Errorf("%d lines, %v", len(reply.Lines), err)
	}
	in = strings.Repeat("250-"+strings.Repeat("x", 1000)+"\r\n", 500) + "250 STARTTLS\r\n"
	if reply, err = ReadHelloReply(bufio.NewReader(strings.NewReader(in))); err != nil || len(reply.Text()) > maxHelloText+maxReplyLines {
		t.Errorf("%d octets, %v", len(reply.Text()), err)
	}
}

func TestAppendReply(t *testing.T) {
	for _, tt := range []struct {
		reply mail.Reply
		want  string
	}{
		{mail.Reply{Code: 220, Lines: []string{"mail.example ESMTP"}}, "220 mail.example ESMTP\r\n"},
		{mail.Reply{Code: 250, Lines: []string{"a", "b"}}, "250-a\r\n250 b\r\n"},
		{mail.Reply{Code: 354}, "354 \r\n"},
		{
			mail.Reply{Code: 550, Enhanced: mail.EnhancedCode{Class: 5, Subject: 7, Detail: 13}, Lines: []string{"a", "b"}},
			"550-5.7.13 a\r\n550 5.7.13 b\r\n",
		},
	} {
		if got := string(AppendReply(nil, tt.reply)); got != tt.want {
			t.Errorf("AppendReply(%+v) = %q, want %q", tt.reply, got, tt.want)
		}
	}
}

// Whatever a server says, a reply that is taken is safe to store, and comes
// out the same when it is printed and read again.
func FuzzReadReply(f *testing.F) {
	for _, seed := range []string{
		"250 OK\r\n", "250-a\r\n250-SIZE 1\n250 b\r\n", "550 5.1.1 no\r\n", "250", "354\r\n", "250-2.0.0 a\r\n550 b\r\n", "550 \xff\x00\r\n", "450  4.7.1  x\n",
	} {
		f.Add([]byte(seed))
	}
	f.Fuzz(func(t *testing.T, in []byte) {
		reply, err := ReadReply(bufio.NewReaderSize(strings.NewReader(string(in)), 64))
		if err != nil {
			if reply.Code != 0 || reply.Lines != nil {
				t.Fatalf("reply %+v with error %v", reply, err)
			}
			return
		}
		if reply.Code < 200 || reply.Code > 599 || len(reply.Lines) == 0 || !reply.Enhanced.IsZero() && int(reply.Enhanced.Class) != reply.Code/100 {
			t.Fatalf("reply %+v", reply)
		}
		if text := reply.Text(); len(text) > MaxReplyText+maxReplyLines {
			t.Fatalf("%d octets are kept", len(text))
		}
		for _, line := range reply.Lines {
			if !utf8.ValidString(line) || strings.ContainsAny(line, "\r\n\x00\x7f") {
				t.Fatalf("unsafe line %q", line)
			}
		}
		if reply.Enhanced.IsZero() {
			return // text may look like an enhanced code of another class
		}
		again, err := ReadReply(bufio.NewReaderSize(strings.NewReader(string(AppendReply(nil, reply))), 1<<16))
		if err == nil && (again.Code != reply.Code || again.Enhanced != reply.Enhanced || len(again.Lines) != len(reply.Lines)) {
			t.Fatalf("%+v is read again as %+v", reply, again)
		}
	})
}
