package smtp

import (
	"bufio"
	"bytes"
	"errors"
	"io"
	"strings"
	"testing"
	"testing/iotest"
)

// RFC 5321 §4.5.2.
func TestDotWriter(t *testing.T) {
	tests := []struct{ in, want string }{
		{"", ".\r\n"},
		{"a\r\n", "a\r\n.\r\n"},
		{"a", "a\r\n.\r\n"},
		{".", "..\r\n.\r\n"},
		{".\r\n", "..\r\n.\r\n"},
		{"..\r\n", "...\r\n.\r\n"},
		{"a\r\n.b\r\n..c\r\nd.\r\n", "a\r\n..b\r\n...c\r\nd.\r\n.\r\n"},
		{"\r\n\r\n.\r\n", "\r\n\r\n..\r\n.\r\n"},
		{"\x00\xff\r\n", "\x00\xff\r\n.\r\n"},
	}
	for _, tt := range tests {
		for size := 1; size <= len(tt.in)+1; size++ {
			var out bytes.Buffer
			w := NewDotWriter(&out)
			for rest := []byte(tt.in); len(rest) > 0; {
				n := min(size, len(rest))
				if wrote, err := w.Write(rest[:n]); wrote != n || err != nil {
					t.Fatalf("Write(%q) of %q = %d, %v", rest[:n], tt.in, wrote, err)
				}
				rest = rest[n:]
			}
			if err := w.Close(); err != nil || out.String() != tt.want {
				t.Errorf("%q in blocks of %d: %q, %v; want %q", tt.in, size, out.String(), err, tt.want)
			}
		}
	}
}

// Nothing that a careless server could take for an end of data leaves.
func TestDotWriterBareNewline(t *testing.T) {
	for _, in := range []string{
		"a\n.\r\n", "a\n.\n", "a\r.\r\n", "a\r\r\n.\r\n", "\n", "\n.\r\nMAIL FROM:<>\r\n", "ok\r\n.\rx", "a\r\n\n.\r\n", "a\r", "\r",
	} {
		for size := 1; size <= len(in); size++ {
			var out bytes.Buffer
			w := NewDotWriter(&out)
			var err error
			for rest := []byte(in); len(rest) > 0 && err == nil; {
				n := min(size, len(rest))
				_, err = w.Write(rest[:n])
				rest = rest[n:]
			}
			if err == nil {
				err = w.Close()
			}
			if !errors.Is(err, ErrBareNewline) || w.Close() == nil {
				t.Errorf("%q in blocks of %d: %v", in, size, err)
			}
			if strings.Contains(out.String(), "\n.\r\n") || strings.Contains(strings.ReplaceAll(out.String(), "\r\n", ""), "\n") {
				t.Errorf("%q in blocks of %d leaves as %q", in, size, out.String())
			}
		}
	}
}

func TestLineCheck(t *testing.T) {
	for content, clean := range map[string]bool{
		"": true, "a": true, "\r\n": true, "a\r\nb\r\n\r\n.\r\n": true, "\n": false, "\r": false, "a\r": false, "a\nb\r\n": false,
		"a\rb\r\n": false, "\r\r\n": false, "\r\n\n": false,
	} {
		for size := 1; size <= len(content)+1; size++ {
			var c LineCheck
			for rest := []byte(content); len(rest) > 0; {
				n := min(size, len(rest))
				c.Look(rest[:n])
				rest = rest[n:]
			}
			if err := c.Err(); (err == nil) != clean || err != nil && !errors.Is(err, ErrBareNewline) {
				t.Errorf("%q in blocks of %d: %v", content, size, err)
			}
		}
	}
}

type failingWriter struct{ left int }

var errFull = errors.New("full")

func (w *failingWriter) Write(p []byte) (int, error) {
	if len(p) > w.left {
		return w.left, errFull
	}
	w.left -= len(p)
	return len(p), nil
}

func TestDotWriterError(t *testing.T) {
	w := NewDotWriter(&failingWriter{left: 5})
	if n, err := w.Write([]byte("abc\r\n.def\r\n")); n != 5 || !errors.Is(err, errFull) {
		t.Errorf("Write = %d, %v", n, err)
	}
	if err := w.Close(); !errors.Is(err, errFull) {
		t.Errorf("Close = %v", err)
	}
}

// RFC 5321 §4.1.1.4, §4.5.2. What follows the end is left to the next
// command.
func TestDotReader(t *testing.T) {
	tests := []struct {
		in, want, rest string
		err            error
	}{
		{in: ".\r\nQUIT\r\n", want: "", rest: "QUIT\r\n"},
		{in: "a\r\n.\r\nQUIT\r\n", want: "a\r\n", rest: "QUIT\r\n"},
		{in: "..\r\n.\r\n", want: ".\r\n"},
		{in: "...a\r\n.\r\n", want: "..a\r\n"},
		{in: ".a\r\n.\r\n", want: "a\r\n"},
		{in: "a.\r\n.b\r\n..\r\n.\r\n", want: "a.\r\nb\r\n.\r\n"},
		{in: "\r\n\r\n.\r\n.\r\n", want: "\r\n\r\n", rest: ".\r\n"},

		{in: "a\n.\r\nb\r\n.\r\nX", want: "a\n.\r\nb\r\n", rest: "X", err: ErrBareNewline},
		{in: "a\n.\nMAIL\r\n.\r\nX", want: "a\n.\nMAIL\r\n", rest: "X", err: ErrBareNewline},
		{in: "a\r.\r\nb\r\n.\r\nX", want: "a\r.\r\nb\r\n", rest: "X", err: ErrBareNewline},
		{in: "a\r.\rb\r\n.\r\nX", want: "a\r.\rb\r\n", rest: "X", err: ErrBareNewline},
		{in: "a\r\n.\nb\r\n.\r\nX", want: "a\r\n\nb\r\n", rest: "X", err: ErrBareNewline},
		{in: "a\r\n.\rb\r\n.\r\nX", want: "a\r\n\rb\r\n", rest: "X", err: ErrBareNewline},
		{in: "a\r\n.\r\r\n.\r\nX", want: "a\r\n\r\r\n", rest: "X", err: ErrBareNewline},
		{in: "a\r\r\n.\r\nX", want: "a\r\r\n", rest: "X", err: ErrBareNewline},
		{in: "a\n\r\n.\r\nX", want: "a\n\r\n", rest: "X", err: ErrBareNewline},

		{in: "", err: io.ErrUnexpectedEOF},
		{in: "a\r\n", want: "a\r\n", err: io.ErrUnexpectedEOF},
		{in: "a\r\n.", want: "a\r\n", err: io.ErrUnexpectedEOF},
		{in: "a\r\n.\r", want: "a\r\n", err: io.ErrUnexpectedEOF},
		{in: "a\n.\n", want: "a\n.\n", err: io.ErrUnexpectedEOF},
	}
	for _, tt := range tests {
		for _, size := range []int{1, 2, 3, 64} {
			for name, stream := range map[string]io.Reader{
				"whole": strings.NewReader(tt.in), "bytes": iotest.OneByteReader(strings.NewReader(tt.in)),
			} {
				r := bufio.NewReader(stream)
				var d DotReader
				d.Reset(r)
				got, err := readAll(&d, size)
				if string(got) != tt.want || !errors.Is(err, tt.err) {
					t.Errorf("%s, %d: %q gives %q, %v; want %q, %v", name, size, tt.in, got, err, tt.want, tt.err)
				}
				rest, err := io.ReadAll(r)
				if err != nil || string(rest) != tt.rest {
					t.Errorf("%s, %d: behind %q is %q, %v; want %q", name, size, tt.in, rest, err, tt.rest)
				}
			}
		}
	}
}

// readAll reads in blocks of size; the clean end is no error.
func readAll(r io.Reader, size int) ([]byte, error) {
	var all []byte
	block := make([]byte, size)
	for {
		n, err := r.Read(block)
		all = append(all, block[:n]...)
		if errors.Is(err, io.EOF) {
			return all, nil
		}
		if err != nil {
			return all, err
		}
	}
}

func TestDotReaderError(t *testing.T) {
	var d DotReader
	d.Reset(bufio.NewReader(iotest.TimeoutReader(iotest.OneByteReader(strings.NewReader("abc")))))
	if _, err := readAll(&d, 8); !errors.Is(err, iotest.ErrTimeout) {
		t.Errorf("error of the stream: %v", err)
	}
}

// The reader finds the end where a byte-by-byte look at the stream finds
// CRLF.CRLF, however the stream is cut, and calls content clean if and only
// if it has no bare CR or LF.
func FuzzDotReader(f *testing.F) {
	for _, seed := range []string{
		".\r\n", "a\r\n.\r\nQUIT\r\n", "a\n.\r\nb\r\n.\r\n", "\r\n..\r\n.\r\r\n.\r\n", "a\r\r\n.\r\n", ".\r.\r\n.\r\n",
	} {
		f.Add([]byte(seed), uint8(3))
	}
	f.Fuzz(func(t *testing.T, in []byte, size uint8) {
		r := bufio.NewReaderSize(bytes.NewReader(in), 16)
		var d DotReader
		d.Reset(r)
		got, err := readAll(&d, int(size)+1)

		end := bytes.Index(append([]byte("\r\n"), in...), []byte("\r\n.\r\n"))
		if end < 0 {
			if !errors.Is(err, io.ErrUnexpectedEOF) {
				t.Fatalf("%q has no end, but err is %v", in, err)
			}
			return
		}
		rest, restErr := io.ReadAll(r)
		if want := in[end+len(".\r\n"):]; restErr != nil || !bytes.Equal(rest, want) {
			t.Fatalf("behind the end of %q is %q, %v, want %q", in, rest, restErr, want)
		}
		wire := in[:end]
		bare := strings.ContainsAny(strings.ReplaceAll(string(wire), "\r\n", ""), "\r\n")
		if bare != errors.Is(err, ErrBareNewline) || !bare && err != nil {
			t.Fatalf("%q: bare %v, err %v", in, bare, err)
		}
		if bare {
			return
		}
		want := strings.TrimPrefix(strings.ReplaceAll("\r\n"+string(wire), "\r\n.", "\r\n"), "\r\n")
		if string(got) != want {
			t.Fatalf("%q gives %q, want %q", in, got, want)
		}
	})
}

// What the writer writes the reader reads back.
func FuzzDotRoundTrip(f *testing.F) {
	f.Add([]byte("a\r\n.b\r\n"), uint8(2))
	f.Add([]byte("no end"), uint8(1))
	f.Add([]byte(".\n"), uint8(9))
	f.Fuzz(func(t *testing.T, content []byte, size uint8) {
		var wire bytes.Buffer
		w := NewDotWriter(&wire)
		var err error
		for rest := content; len(rest) > 0 && err == nil; {
			n := min(int(size)+1, len(rest))
			_, err = w.Write(rest[:n])
			rest = rest[n:]
		}
		if err == nil {
			err = w.Close()
		}
		bare := strings.ContainsAny(strings.ReplaceAll(string(content), "\r\n", ""), "\r\n")
		if bare != errors.Is(err, ErrBareNewline) {
			t.Fatalf("%q: bare %v, err %v", content, bare, err)
		}
		if bare {
			return
		}
		var d DotReader
		r := bufio.NewReader(&wire)
		d.Reset(r)
		got, err := io.ReadAll(&d)
		want := content
		if len(want) > 0 && !bytes.HasSuffix(want, crlf) {
			want = append(bytes.Clone(want), crlf...)
		}
		if err != nil || !bytes.Equal(got, want) || r.Buffered() != 0 {
			t.Fatalf("%q comes back as %q, %v", content, got, err)
		}
	})
}

// The paths of every message must not allocate or crawl.
func BenchmarkDotReader(b *testing.B) {
	line := strings.Repeat("x", 74) + "\r\n"
	wire := strings.Repeat(line, 860) + ".\r\n"
	block := make([]byte, 64<<10)
	source := strings.NewReader("")
	r := bufio.NewReaderSize(source, 8<<10)
	var d DotReader
	b.SetBytes(int64(len(wire)))
	b.ReportAllocs()
	for b.Loop() {
		source.Reset(wire)
		r.Reset(source)
		d.Reset(r)
		for {
			if _, err := d.Read(block); err != nil {
				if !errors.Is(err, io.EOF) {
					b.Fatal(err)
				}
				break
			}
		}
	}
}

func BenchmarkDotWriter(b *testing.B) {
	content := []byte(strings.Repeat(strings.Repeat("x", 74)+"\r\n", 860))
	b.SetBytes(int64(len(content)))
	b.ReportAllocs()
	for b.Loop() {
		w := NewDotWriter(io.Discard)
		if _, err := w.Write(content); err != nil {
			b.Fatal(err)
		}
		if err := w.Close(); err != nil {
			b.Fatal(err)
		}
	}
}
