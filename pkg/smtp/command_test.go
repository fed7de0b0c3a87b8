package smtp

import (
	"errors"
	"strings"
	"testing"

	"github.com/postrider/postrider/pkg/mail"
)

// RFC 5321 §4.1.1, §2.4.
func TestParseCommand(t *testing.T) {
	tests := []struct {
		line string
		want Command
		err  error
	}{
		{line: "QUIT", want: Command{Verb: "QUIT"}},
		{line: "quit", want: Command{Verb: "QUIT"}},
		{line: "RSET  \t ", want: Command{Verb: "RSET"}},
		{line: "EHLO mail.example.com", want: Command{"EHLO", "mail.example.com"}},
		{line: "mAiL FROM:<a@b> BODY=7BIT ", want: Command{"MAIL", "FROM:<a@b> BODY=7BIT"}},
		{line: "MAIL  FROM:<a@b>", want: Command{"MAIL", "FROM:<a@b>"}},
		{line: "xyzzy one", want: Command{"XYZZY", "one"}},
		{line: "RCPT TO:<jürgen@example.com>", want: Command{"RCPT", "TO:<jürgen@example.com>"}},
		{line: "", err: ErrCommand},
		{line: " QUIT", err: ErrCommand},
		{line: "MAIL\tFROM:<a@b>", err: ErrCommand},
		{line: "NOOP a\x00b", err: ErrCommand},
		{line: "NOOP a\rb", err: ErrCommand},
		{line: "NOOP a\x7f", err: ErrCommand},
		{line: "250 ok", err: ErrCommand},
		{line: "QUIT;", err: ErrCommand},
	}
	for _, tt := range tests {
		got, err := ParseCommand([]byte(tt.line))
		if got != tt.want || !errors.Is(err, tt.err) {
			t.Errorf("ParseCommand(%q) = %+v, %v; want %+v, %v", tt.line, got, err, tt.want, tt.err)
		}
	}
}

// RFC 5321 §4.1.1.2, RFC 1870, RFC 6152, RFC 6531, RFC 3461 §4.
func TestParseMail(t *testing.T) {
	tests := []struct {
		args string
		want MailArgs
		err  error
	}{
		{args: "FROM:<>", want: MailArgs{}},
		{args: "FROM:<a@b.example>", want: MailArgs{ReversePath: "a@b.example"}},
		{args: "from: <a@b.example>", want: MailArgs{ReversePath: "a@b.example"}},
		{args: "FROM:a@b.example", want: MailArgs{ReversePath: "a@b.example"}},
		{args: "FROM: a@b.example SIZE=5", want: MailArgs{ReversePath: "a@b.example", SizeBytes: 5}},
		{args: "FROM:<a@b.example> SIZE=1000 BODY=8BITMIME", want: MailArgs{ReversePath: "a@b.example", SizeBytes: 1000, Body: mail.Body8BitMIME}},
		{args: "FROM:<a@b.example>  size=5   body=7bit", want: MailArgs{ReversePath: "a@b.example", SizeBytes: 5, Body: mail.Body7Bit}},
		{args: "FROM:<a@b.example> RET=hdrs ENVID=QQ+2B314", want: MailArgs{ReversePath: "a@b.example", Ret: mail.RetHdrs, EnvID: "QQ+314"}},
		{args: "FROM:<ü@b.example> SMTPUTF8", want: MailArgs{ReversePath: "ü@b.example", SMTPUTF8: true}},
		{args: "FROM:<> SIZE=99999999999999999999", want: MailArgs{SizeBytes: 1<<63 - 1}},

		{args: "", err: ErrArguments},
		{args: "<a@b.example>", err: ErrArguments},
		{args: "TO:<a@b.example>", err: ErrArguments},
		{args: "FROM:a@b.example>", err: ErrPath},
		{args: "FROM:", err: ErrPath},
		{args: "FROM:<a@b.example>SIZE=1", err: ErrArguments},
		{args: "FROM:<a@b.example> =1", err: ErrArguments},
		{args: "FROM:<a@b.example> SIZE=", err: ErrArguments},
		{args: "FROM:<a@b.example> S_ZE=1", err: ErrArguments},
		{args: "FROM:<ü@b.example>", err: ErrNonASCII},
		{args: "FROM:<a@b.example> SIZE=-1", err: ErrParameter},
		{args: "FROM:<a@b.example> SIZE=1 SIZE=1", err: ErrParameter},
		{args: "FROM:<a@b.example> SIZE=100000000000000000000", err: ErrParameter},
		{args: "FROM:<a@b.example> BODY=9BIT", err: ErrParameter},
		{args: "FROM:<a@b.example> SMTPUTF8=yes", err: ErrParameter},
		{args: "FROM:<a@b.example> RET=SOME", err: ErrParameter},
		{args: "FROM:<a@b.example> ENVID=a+2b", err: ErrParameter},
		{args: "FROM:<a@b.example> ENVID=a+00", err: ErrParameter},
		{args: "FROM:<a@b.example> ENVID=" + strings.Repeat("x", 101), err: ErrParameter},
		{args: "FROM:<a@b.example> XVERP", err: ErrUnknown},
		{args: "FROM:<a@b.example> NOTIFY=NEVER", err: ErrUnknown},
	}
	for _, tt := range tests {
		got, err := ParseMail(tt.args)
		if got != tt.want || !errors.Is(err, tt.err) {
			t.Errorf("ParseMail(%q) = %+v, %v; want %+v, %v", tt.args, got, err, tt.want, tt.err)
		}
	}
}

// RFC 5321 §4.1.1.3, RFC 3461 §4.1, §4.2, RFC 6533 §3.
func TestParseRcpt(t *testing.T) {
	tests := []struct {
		args     string
		nonASCII bool
		want     RcptArgs
		err      error
	}{
		{args: "TO:<a@b.example>", want: RcptArgs{ForwardPath: "a@b.example"}},
		{args: "to: <a@b.example>", want: RcptArgs{ForwardPath: "a@b.example"}},
		{args: "TO:<Postmaster>", want: RcptArgs{ForwardPath: Postmaster}},
		{args: "TO:<a@b.example> NOTIFY=never", want: RcptArgs{ForwardPath: "a@b.example", Notify: mail.NotifyNever}},
		{
			args: "TO:<a@b.example> NOTIFY=SUCCESS,DELAY ORCPT=rfc822;Bob+2Bx@b.example",
			want: RcptArgs{ForwardPath: "a@b.example", Notify: mail.NotifySuccess | mail.NotifyDelay, ORCPT: "rfc822;Bob+x@b.example"},
		},
		{args: `TO:<a@b.example> ORCPT=utf-8;\x{FC}@b.example`, want: RcptArgs{ForwardPath: "a@b.example", ORCPT: `utf-8;\x{FC}@b.example`}},
		{args: "TO:<ü@b.example> ORCPT=utf-8;ü@b.example", nonASCII: true, want: RcptArgs{ForwardPath: "ü@b.example", ORCPT: "utf-8;ü@b.example"}},

		{args: "TO:<>", err: ErrPath},
		{args: "FROM:<a@b.example>", err: ErrArguments},
		{args: "TO:<ü@b.example>", err: ErrNonASCII},
		{args: "TO:<a@b.example> NOTIFY=NEVER,DELAY", err: ErrParameter},
		{args: "TO:<a@b.example> NOTIFY=SUCCESS,", err: ErrParameter},
		{args: "TO:<a@b.example> NOTIFY=NEVER NOTIFY=NEVER", err: ErrParameter},
		{args: "TO:<a@b.example> ORCPT=rfc822", err: ErrParameter},
		{args: "TO:<a@b.example> ORCPT=;a@b", err: ErrParameter},
		{args: "TO:<a@b.example> ORCPT=rfc822;", err: ErrParameter},
		{args: "TO:<a@b.example> ORCPT=rfc822;a+0D+0A", err: ErrParameter},
		{args: "TO:<a@b.example> ORCPT=utf-8;ü@b.example", err: ErrParameter},
		{args: "TO:<a@b.example> ORCPT=rfc822;" + strings.Repeat("x", 494), err: ErrParameter},
		{args: "TO:<a@b.example> SIZE=1", err: ErrUnknown},
	}
	for _, tt := range tests {
		got, err := ParseRcpt(tt.args, tt.nonASCII)
		if got != tt.want || !errors.Is(err, tt.err) {
			t.Errorf("ParseRcpt(%q) = %+v, %v; want %+v, %v", tt.args, got, err, tt.want, tt.err)
		}
	}
}

// RFC 3030 §2.
func TestParseBDAT(t *testing.T) {
	tests := []struct {
		args string
		size int64
		last bool
		err  error
	}{
		{args: "0", size: 0},
		{args: "1000", size: 1000},
		{args: "86 LAST", size: 86, last: true},
		{args: "86  last", size: 86, last: true},
		{args: "", err: ErrArguments},
		{args: "LAST", err: ErrArguments},
		{args: "-1", err: ErrArguments},
		{args: "1 FIRST", err: ErrArguments},
		{args: "1 LAST 2", err: ErrArguments},
	}
	for _, tt := range tests {
		size, last, err := ParseBDAT(tt.args)
		if size != tt.size || last != tt.last || !errors.Is(err, tt.err) {
			t.Errorf("ParseBDAT(%q) = %d, %v, %v", tt.args, size, last, err)
		}
	}
}

func TestXtext(t *testing.T) {
	for plain, encoded := range map[string]string{
		"": "", "abc": "abc", "a+b=c": "a+2Bb+3Dc", "a b": "a+20b", "ü": "+C3+BC", "+": "+2B", "~!": "~!", "\x7f\x00": "+7F+00",
	} {
		if got := EncodeXtext(plain); got != encoded {
			t.Errorf("EncodeXtext(%q) = %q, want %q", plain, got, encoded)
		}
		if got, err := DecodeXtext(encoded); got != plain || err != nil {
			t.Errorf("DecodeXtext(%q) = %q, %v, want %q", encoded, got, err, plain)
		}
	}
	for _, bad := range []string{"a=b", "a b", "+", "+2", "+2b", "+GG", "ü", "a+2Bb c", "x+2B="} {
		if got, err := DecodeXtext(bad); !errors.Is(err, ErrXtext) {
			t.Errorf("DecodeXtext(%q) = %q, %v", bad, got, err)
		}
	}
}

// What a server takes from a client is printed by a client so that the next
// server reads the same, and is one line.
func FuzzCommand(f *testing.F) {
	for _, seed := range []string{
		"MAIL FROM:<a@b.example> SIZE=1 BODY=8BITMIME SMTPUTF8 RET=FULL ENVID=a+2Bb",
		"RCPT TO:<a@b.example> NOTIFY=SUCCESS,FAILURE,DELAY ORCPT=rfc822;a+2Bb@c",
		"RCPT TO:<ü@b.example> ORCPT=utf-8;ü@b.example", "RCPT TO:<postmaster>",
		"BDAT 10 LAST", "EHLO [IPv6:::1]", "MAIL FROM: <>", "MAIL FROM:<@a:b@c> X=Y", "NOOP \x01",
	} {
		f.Add([]byte(seed))
	}
	f.Fuzz(func(t *testing.T, line []byte) {
		command, err := ParseCommand(line)
		if err != nil {
			return
		}
		switch command.Verb {
		case "MAIL":
			if m, err := ParseMail(command.Args); err == nil {
				again, err := ParseMail(rearguments(t, AppendMail(nil, m), "MAIL "))
				if err != nil || again != m {
					t.Fatalf("%q: %+v is read again as %+v, %v", line, m, again, err)
				}
			}
		case "RCPT":
			if r, err := ParseRcpt(command.Args, true); err == nil {
				again, err := ParseRcpt(rearguments(t, AppendRcpt(nil, r), "RCPT "), true)
				if err != nil || again != r {
					t.Fatalf("%q: %+v is read again as %+v, %v", line, r, again, err)
				}
			}
		case "BDAT":
			if size, _, err := ParseBDAT(command.Args); err == nil && size < 0 {
				t.Fatalf("%q: size %d", line, size)
			}
		}
	})
}

// rearguments parses a printed command line and returns its arguments.
func rearguments(t *testing.T, line []byte, prefix string) string {
	t.Helper()
	text, ok := strings.CutSuffix(string(line), "\r\n")
	if !ok || strings.ContainsAny(text, "\r\n") {
		t.Fatalf("%q is not one line", line)
	}
	command, err := ParseCommand([]byte(text))
	if err != nil {
		t.Fatalf("printed %q: %v", line, err)
	}
	args, ok := strings.CutPrefix(text, prefix)
	if !ok || args != command.Args {
		t.Fatalf("printed %q has arguments %q", line, command.Args)
	}
	return args
}
