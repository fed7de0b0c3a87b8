package proxy

import (
	"bytes"
	"errors"
	"io"
	"net/netip"
	"strings"
	"testing"
	"testing/iotest"
)

const v2 = signature

func TestRead(t *testing.T) {
	tests := []struct {
		name, in, client string
		err              error
	}{
		{name: "TCP4", in: "PROXY TCP4 192.0.2.1 192.0.2.2 1234 25\r\n", client: "192.0.2.1"},
		{name: "TCP6", in: "PROXY TCP6 2001:db8::1 2001:db8::2 1234 25\r\n", client: "2001:db8::1"},
		{name: "mapped", in: "PROXY TCP6 ::ffff:192.0.2.1 ::ffff:192.0.2.2 1 25\r\n", client: "192.0.2.1"},
		{name: "longest", in: "PROXY TCP6 " + strings.Repeat("ffff:", 7) + "ffff " + strings.Repeat("ffff:", 7) + "ffff 65535 65535\r\n", client: "ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff"},
		{name: "UNKNOWN", in: "PROXY UNKNOWN\r\n"},
		{name: "UNKNOWN with text", in: "PROXY UNKNOWN ffff:: ffff:: 1 2\r\n"},
		{name: "v2 LOCAL", in: v2 + "\x20\x00\x00\x00"},
		{name: "v2 LOCAL with addresses", in: v2 + "\x20\x11\x00\x0c" + "\xc0\x00\x02\x01\xc0\x00\x02\x02\x04\xd2\x00\x19"},
		{name: "v2 TCP4", in: v2 + "\x21\x11\x00\x0c" + "\xc0\x00\x02\x01\xc0\x00\x02\x02\x04\xd2\x00\x19", client: "192.0.2.1"},
		{name: "v2 TCP4 and extensions", in: v2 + "\x21\x11\x00\x10" + "\xc0\x00\x02\x01\xc0\x00\x02\x02\x04\xd2\x00\x19" + "\x04\x00\x01\x00", client: "192.0.2.1"},
		{name: "v2 TCP6", in: v2 + "\x21\x21\x00\x24" + "\x20\x01\x0d\xb8" + strings.Repeat("\x00", 11) + "\x01" + strings.Repeat("\x00", 20), client: "2001:db8::1"},
		{name: "v2 unspecified", in: v2 + "\x21\x00\x00\x00"},

		{name: "SMTP", in: "EHLO client.example\r\n", err: ErrHeader},
		{name: "in lower case", in: "proxy TCP4 192.0.2.1 192.0.2.2 1234 25\r\n", err: ErrHeader},
		{name: "no ports", in: "PROXY TCP4 192.0.2.1 192.0.2.2\r\n", err: ErrHeader},
		{name: "port too large", in: "PROXY TCP4 192.0.2.1 192.0.2.2 65536 25\r\n", err: ErrHeader},
		{name: "port with zero", in: "PROXY TCP4 192.0.2.1 192.0.2.2 025 25\r\n", err: ErrHeader},
		{name: "two spaces", in: "PROXY TCP4  192.0.2.1 192.0.2.2 1234 25\r\n", err: ErrHeader},
		{name: "family differs", in: "PROXY TCP4 2001:db8::1 2001:db8::2 1234 25\r\n", err: ErrHeader},
		{name: "a zone", in: "PROXY TCP6 fe80::1%eth0 fe80::2 1234 25\r\n", err: ErrHeader},
		{name: "a name", in: "PROXY TCP4 localhost 192.0.2.2 1234 25\r\n", err: ErrHeader},
		{name: "other protocol", in: "PROXY UDP4 192.0.2.1 192.0.2.2 1234 25\r\n", err: ErrHeader},
		{name: "bare LF", in: "PROXY TCP4 192.0.2.1 192.0.2.2 1234 25\n" + strings.Repeat("x", 200), err: ErrHeader},
		{name: "too long", in: "PROXY UNKNOWN " + strings.Repeat("x", 100) + "\r\n", err: ErrHeader},
		{name: "v2 version 1", in: v2 + "\x11\x11\x00\x00", err: ErrHeader},
		{name: "v2 command 2", in: v2 + "\x22\x11\x00\x00", err: ErrHeader},
		{name: "v2 UDP", in: v2 + "\x21\x12\x00\x0c" + strings.Repeat("\x01", 12), err: ErrHeader},
		{name: "v2 unix", in: v2 + "\x21\x31\x00\xd8" + strings.Repeat("\x01", 216), err: ErrHeader},
		{name: "v2 short", in: v2 + "\x21\x11\x00\x0b" + strings.Repeat("\x01", 11), err: ErrHeader},
		{name: "v2 huge", in: v2 + "\x21\x11\xff\xff", err: ErrHeader},
		{name: "v2 cut off", in: v2 + "\x21\x11\x00\x0c\xc0", err: io.ErrUnexpectedEOF},
		{name: "v1 cut off", in: "PROXY TCP4 192.0.2.1", err: io.EOF},
		{name: "nothing", in: "", err: io.EOF},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			const rest = "EHLO x\r\n"
			in := tt.in
			if tt.err == nil {
				in += rest
			}
			r := strings.NewReader(in)
			header, err := Read(iotest.OneByteReader(r))
			if !errors.Is(err, tt.err) {
				t.Fatalf("error %v, want %v", err, tt.err)
			}
			want := netip.Addr{}
			if tt.client != "" {
				want = netip.MustParseAddr(tt.client)
			}
			if header.Client != want {
				t.Errorf("client %s, want %s", header.Client, want)
			}
			if tt.err == nil && r.Len() != len(rest) {
				t.Errorf("%d octets are left, want %d", r.Len(), len(rest))
			}
		})
	}
}

// Whatever comes: an address or an error, the same however it is cut, and
// never more than the header is read.
func FuzzRead(f *testing.F) {
	f.Add([]byte("PROXY TCP4 192.0.2.1 192.0.2.2 1234 25\r\nEHLO"))
	f.Add([]byte(v2 + "\x21\x11\x00\x0c\xc0\x00\x02\x01\xc0\x00\x02\x02\x04\xd2\x00\x19EHLO"))
	f.Add([]byte("PROXY UNKNOWN\r\n"))
	f.Fuzz(func(t *testing.T, in []byte) {
		whole := bytes.NewReader(in)
		header, err := Read(whole)
		cut := bytes.NewReader(in)
		again, errAgain := Read(iotest.OneByteReader(cut))
		if header != again || (err == nil) != (errAgain == nil) || whole.Len() != cut.Len() {
			t.Fatalf("%q: %v, %v and %v, %v", in, header, err, again, errAgain)
		}
		if err != nil && header.Client.IsValid() || header.Client.Is4In6() || header.Client.Zone() != "" {
			t.Fatalf("%q: %v, %v", in, header, err)
		}
	})
}
