package smtp

import (
	"errors"
	"strings"
	"testing"
	"time"
)

// RFC 2852 §4, RFC 4865 §4, RFC 4954 §5, RFC 6710 §4.1, RFC 8689 §4.1.
func TestParseMailExtensions(t *testing.T) {
	tests := []struct {
		args string
		want MailArgs
		err  error
	}{
		{args: "BY=120;R", want: MailArgs{DeliverBy: DeliverBy{Within: 2 * time.Minute, Return: true, Given: true}}},
		{args: "by=+120;rt", want: MailArgs{DeliverBy: DeliverBy{Within: 2 * time.Minute, Return: true, Trace: true, Given: true}}},
		{args: "BY=-5;N", want: MailArgs{DeliverBy: DeliverBy{Within: -5 * time.Second, Given: true}}},
		{args: "BY=0;NT", want: MailArgs{DeliverBy: DeliverBy{Trace: true, Given: true}}},
		{args: "HOLDFOR=60", want: MailArgs{HoldFor: time.Minute}},
		{args: "HOLDUNTIL=2030-01-02T03:04:05Z", want: MailArgs{HoldUntil: time.Date(2030, 1, 2, 3, 4, 5, 0, time.UTC)}},
		{args: "HOLDUNTIL=2030-01-02t03:04:05+01:00", want: MailArgs{HoldUntil: time.Date(2030, 1, 2, 2, 4, 5, 0, time.UTC)}},
		{args: "MT-PRIORITY=-9", want: MailArgs{Priority: MTPriority{-9, true}}},
		{args: "mt-priority=0", want: MailArgs{Priority: MTPriority{0, true}}},
		{args: "AUTH=<>", want: MailArgs{Auth: "<>"}},
		{args: "AUTH=e+3Dmc2@example.com", want: MailArgs{Auth: "e=mc2@example.com"}},
		{args: "REQUIRETLS", want: MailArgs{RequireTLS: true}},

		{args: "BY=0;R", err: ErrParameter},
		{args: "BY=-5;R", err: ErrParameter},
		{args: "BY=-+5;N", err: ErrParameter},
		{args: "BY=5", err: ErrParameter},
		{args: "BY=5;X", err: ErrParameter},
		{args: "BY=;R", err: ErrParameter},
		{args: "BY=1000000000;R", err: ErrParameter},
		{args: "BY=5;R BY=5;R", err: ErrParameter},
		{args: "HOLDFOR=0", err: ErrParameter},
		{args: "HOLDFOR=-1", err: ErrParameter},
		{args: "HOLDFOR=1000000000", err: ErrParameter},
		{args: "HOLDFOR=5 HOLDUNTIL=2030-01-02T03:04:05Z", err: ErrParameter},
		{args: "HOLDUNTIL=2030-01-02T03:04:05Z HOLDFOR=5", err: ErrParameter},
		{args: "HOLDUNTIL=tomorrow", err: ErrParameter},
		{args: "MT-PRIORITY=10", err: ErrParameter},
		{args: "MT-PRIORITY=-0", err: ErrParameter},
		{args: "MT-PRIORITY=+1", err: ErrParameter},
		{args: "MT-PRIORITY=1 MT-PRIORITY=1", err: ErrParameter},
		{args: "AUTH=a+", err: ErrParameter},
		{args: "AUTH=a@b AUTH=<>", err: ErrParameter},
		{args: "AUTH=" + strings.Repeat("x", 501), err: ErrParameter},
		{args: "REQUIRETLS=yes", err: ErrParameter},
		{args: "REQUIRETLS REQUIRETLS", err: ErrParameter},
	}
	for _, tt := range tests {
		got, err := ParseMail("FROM:<> " + tt.args)
		if got != tt.want || !errors.Is(err, tt.err) {
			t.Errorf("ParseMail(%q) = %+v, %v; want %+v, %v", tt.args, got, err, tt.want, tt.err)
		}
	}
}
