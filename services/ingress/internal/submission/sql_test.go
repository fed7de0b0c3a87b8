package submission

import (
	"context"
	"math/rand/v2"
	"regexp"
	"strings"
	"testing"

	"github.com/jackc/pgx/v5"

	"github.com/postrider/postrider/pkg/storetest"
)

// pieces are what header sections are made of here.
var pieces = []string{
	"From: a@b.example\r\n", "from :\r\n a@b.example\r\n", "FROM: A <a@b.example>\r\n", "Sender: a@b.example\r\n", "Resent-From: a@b.example\r\n", "From:\r\n",
	"From root Mon Nov 14\r\n", ">From root\r\n", "From : a@b.example\r\n", "From \r\n",
	"Subject: x\r\n", "Subject:\r\n\tfolded\r\n \r\n more\r\n", "X:y\r\n", "X \t: y\r\n", "Date:\r\n", "Date: x\r\n", "Message-ID: <1@x>\r\n", "Message-ID:\r\n <2@x>\r\n", "Message-Id: <>\r\n", "Message-ID: odd\r\n",
	"Bcc: c@d.example,\r\n e@f.example\r\n", "resent-BCC : c@d.example\r\n", "X-Traceparent: x\r\n", "X-Idempotency-Key: k\r\n", "X-Postrider-Campaign: c\r\n", "TLS-Required: no\r\n", "Received: x\r\n",
	" blank\r\n", "\t\r\n", "\r\n", "text\r\n", "text: with a colon\r\n", "two words: x\r\n", ": x\r\n", "-----\r\n", "Fr\u00a0om: x\r\n", "\ufeffX: y\r\n", "gr\u00fc\u00df dich: x\r\n", "X\x0b: y\r\n", "\x01 two words: x\r\n",
	"X: \x01\r\n", "X: \x1b$B\r\n", "X: \x1b[2J\r\n", "X: \x7f\r\n", "X: \u00fc\r\n", "X: \xfc\r\n", "X: y", "text",
}

var ours = regexp.MustCompile(`^Received: [^\r\n]+(\r\n\t[^\r\n]+)*\r\n(Date: [^\r\n]+\r\n)?(Message-ID: <[^\r\n]+@mx\.example>\r\n)?`)

// TestLikeSQL: what postrider.submit makes of a header section is what is made
// of it here.
func TestLikeSQL(t *testing.T) {
	db, err := pgx.Connect(t.Context(), storetest.New(t))
	if err != nil {
		t.Fatal(err)
	}
	defer db.Close(context.Background())
	taken := 0
	anybody := func(...string) bool { return true }
	for seed := range uint64(600) {
		random := rand.New(rand.NewPCG(seed, 1))
		var b strings.Builder
		b.WriteString(pieces[random.IntN(3)*random.IntN(2)])
		for range random.IntN(6) {
			b.WriteString(pieces[random.IntN(len(pieces))])
		}
		content := b.String()
		if !strings.HasSuffix(content, "\r\n") { // whoever takes it ends the last line
			content += "\r\n"
		}
		h, refused := Read([]byte(content), known)
		if refused == nil {
			refused = h.Authorize(anybody)
		}
		var relayed []byte
		var messageID string
		var optional bool
		err := db.QueryRow(t.Context(), `SELECT relayed, message_id, tls_optional FROM postrider.content_for_submit($1, '01a2270e-0000-7000-8000-000000000000', 'x@y.example', 'mx.example')`,
			[]byte(b.String())).Scan(&relayed, &messageID, &optional)
		if (err == nil) != (refused == nil) {
			t.Errorf("%q: %v here, %v in SQL", content, refused, err)
			continue
		}
		if err != nil {
			continue
		}
		taken++
		want := string(h.AppendKept(nil, []byte(content))) + content[h.End:]
		if got := string(ours.ReplaceAll(relayed, nil)); got != want {
			t.Errorf("%q: %q here, %q in SQL", content, want, got)
		}
		if h.MessageID != "" && messageID != h.MessageID || optional != h.TLSOptional {
			t.Errorf("%q: %q %t here, %q %t in SQL", content, h.MessageID, h.TLSOptional, messageID, optional)
		}
	}
	if taken < 100 || taken > 500 {
		t.Errorf("%d of 600 are taken: the test is about both", taken)
	}
}
