package smtp

import (
	"bufio"
	"bytes"
	"errors"
	"io"
	"strings"
	"testing"
)

func TestLenientData(t *testing.T) {
	for in, want := range map[string]struct {
		content, rest string
		err           error
	}{
		"a\nb\n\r\n.\r\n":                      {content: "a\r\nb\r\n\r\n"},
		"a\n.\r\nb\r\n.\r\nX":                  {content: "a\r\n\r\nb\r\n", rest: "X"}, // LF.CRLF ends nothing
		"a\n.\nMAIL FROM:<x>\r\n.\r\nX":        {content: "a\r\n\r\nMAIL FROM:<x>\r\n", rest: "X"},
		"a\r\n.\nMAIL FROM:<x>\r\n.\r\nX":      {content: "a\r\n\r\nMAIL FROM:<x>\r\n", rest: "X"},
		"a\n..b\r\n...c\r\n.\r\n":              {content: "a\r\n.b\r\n..c\r\n"},
		"a\n.\r\n.\r\nQUIT\r\n":                {content: "a\r\n\r\n", rest: "QUIT\r\n"},
		"a\r.\r\nb\r\n.\r\nX":                  {content: "a\r.\r\nb\r\n", rest: "X", err: ErrBareNewline},
		"a\r\n.\rb\r\n.\r\nX":                  {content: "a\r\n\rb\r\n", rest: "X", err: ErrBareNewline},
		"a\n\r.\r\n.\r\nX":                     {content: "a\r\n\r.\r\n", rest: "X", err: ErrBareNewline},
		"a\n":                                  {content: "a\r\n", err: io.ErrUnexpectedEOF},
		"a\n.\n":                               {content: "a\r\n\r\n", err: io.ErrUnexpectedEOF},
		strings.Repeat("\n", 40) + "\r\n.\r\n": {content: strings.Repeat("\r\n", 41)},
	} {
		for _, size := range []int{1, 2, 3, 64} {
			r := bufio.NewReaderSize(strings.NewReader(in), 16)
			var d DotReader
			d.ResetLenient(r)
			got, err := readAll(NewNewlineReader(&d), size)
			if string(got) != want.content || !errors.Is(err, want.err) {
				t.Errorf("%d: %q gives %q, %v; want %q, %v", size, in, got, err, want.content, want.err)
			}
			if rest, err := io.ReadAll(r); err != nil || string(rest) != want.rest {
				t.Errorf("%d: behind %q is %q, %v; want %q", size, in, rest, err, want.rest)
			}
		}
	}
}

// However lines end, the end of the data is where a strict reader finds it,
// and what comes out has no bare CR or LF, or is refused.
func FuzzLenientData(f *testing.F) {
	for _, seed := range []string{".\r\n", "a\n.\r\nb\r\n.\r\n", "\n..\n.\n\r\n.\r\n", "a\r\r\n.\r\n", "\n.\r.\r\n.\r\n", "\r\n.\n\r\n.\r\nQUIT\r\n"} {
		f.Add([]byte(seed), uint8(3))
	}
	f.Fuzz(func(t *testing.T, in []byte, size uint8) {
		strict, lenient := bufio.NewReaderSize(bytes.NewReader(in), 16), bufio.NewReaderSize(bytes.NewReader(in), 16)
		var d, l DotReader
		d.Reset(strict)
		l.ResetLenient(lenient)
		content, strictErr := readAll(&d, 7)
		mended, err := readAll(NewNewlineReader(&l), int(size)+1)
		strictRest, _ := io.ReadAll(strict)
		rest, _ := io.ReadAll(lenient)
		if !bytes.Equal(rest, strictRest) {
			t.Fatalf("%q: %q is left, want %q", in, rest, strictRest)
		}
		if errors.Is(err, io.ErrUnexpectedEOF) != errors.Is(strictErr, io.ErrUnexpectedEOF) {
			t.Fatalf("%q: %v, want as %v", in, err, strictErr)
		}
		if err != nil {
			return
		}
		if strings.ContainsAny(strings.ReplaceAll(string(mended), "\r\n", ""), "\r\n") {
			t.Fatalf("%q gives %q", in, mended)
		}
		if strictErr == nil && !bytes.Equal(content, mended) {
			t.Fatalf("%q: nothing was to be mended, and %q became %q", in, content, mended)
		}
	})
}
