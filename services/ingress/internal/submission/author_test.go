package submission

import (
	"errors"
	"fmt"
	"strings"
	"testing"

	"github.com/postrider/postrider/pkg/auth"
)

// whose says of addresses whether they are in acme.example.
func whose(addresses ...string) bool {
	for _, a := range addresses {
		if !(auth.Patterns{"acme.example"}).Match(a) {
			return false
		}
	}
	return len(addresses) > 0
}

// Names of From fields that are the client's own, whoever reads them.
var own = []string{
	// RFC 5322 §3.4, appendix A.
	"app@acme.example", "<app@acme.example>", "Acme <app@acme.example>", `"Acme, Inc." <app@acme.example>`, "A. B. <app@acme.example>",
	"(Acme) app@acme.example", "<app@acme.example> (Acme)", "Acme < app@acme.example >", "app@acme.example (Acme)", "app (his) @ (its) acme.example",
	`Pete(A nice \) chap) <app(his account)@acme.example(his host)>`, "app@acme.example, Acme <shop@acme.example>", "Acme: app@acme.example, shop@ACME.example;",
	`"a b"@acme.example`, `Acme <"a@b"@acme.example>`, "a.b.c@acme.example", "a . b@acme . example",
	"=?utf-8?q?J=C3=B6rg?= <app@acme.example>", "=?iso-8859-1?B?SvZyZw?= =?iso-8859-1?q?_M=FCller?= <app@acme.example>", "=?gb2312?B?zfXO?= <app@acme.example>",
	`"bob@gmail.example via Acme" <app@acme.example>`, "=?utf-8?q?bob=40gmail=2Eexample_via_Acme?= <app@acme.example>", `"'bob@other.example'" <app@acme.example>`,
	// What programs write.
	"app@acme.example <app@acme.example>", "'app@acme.example' <app@acme.example>", "<app@acme.example> <app@acme.example>", `"app@acme.example <app@acme.example>" <app@acme.example>`,
	"Acme, Inc. <app@acme.example>", "Acme @ Home <app@acme.example>", "@acme <app@acme.example>", "Acme: Support <app@acme.example>", "Acme Support: <app@acme.example>",
	"Acme [Shop] <app@acme.example>", "[Acme] <app@acme.example>", "Acme; Shop <app@acme.example>", "J\xf6rg M\xfcller <app@acme.example>", "Jörg <app@acme.example>",
	"Acme <app@acme.example> ;", "Acme <app@acme.example>;", "Acme <app@acme.example>,", "app@acme.example;", ", app@acme.example", "Acme app@acme.example", "Acme<app@acme.example>",
	`Acme "the shop" <app@acme.example>`, `24" screens <app@acme.example>`, ":-) Acme <app@acme.example>", "Acme (shop <app@acme.example>", `ACME\scanner <app@acme.example>`,
	"<Acme> <app@acme.example>", "mailto:app@acme.example", "Acme <mailto:app@acme.example>", "Acme, Inc. (Berlin) <app@acme.example>", "Acme | Shop / News <app@acme.example>", "<app@acme.example>>",
	"=?utf-8?Q?Acme,_Inc.?= <app@acme.example>", "=?utf-8?B?QWNtZSwgSW5jLg==?=\t<app@acme.example>",
}

// Names of From fields in which some reader finds somebody else, or nobody.
var others = []string{
	"ceo@other.example", "<ceo@other.example>", "Acme <ceo@other.example>", "app@acme.example, ceo@other.example", "ceo@other.example, app@acme.example",
	`"app@acme.example" <ceo@other.example>`, "<app@acme.example> <ceo@other.example>", "<ceo@other.example> <app@acme.example>", "<app@acme.example>, <ceo@other.example>",
	"app@acme.example <ceo@other.example>", "ceo@other.example <app@acme.example>", "ceo@other.example, Inc. <app@acme.example>", "'ceo@other.example' <app@acme.example>",
	"ceo@other <ceo@other>", "app@acme.example, ceo@other", "Acme <app@acme.example>, ceo@other", "<ceo@other> <app@acme.example>",
	"Acme: app@acme.example, ceo@other.example;", "Acme: ceo@other.example <app@acme.example>",
	"app@acme.example (<ceo@other.example>)", "(ceo@other.example) <app@acme.example>", "(a (ceo@other.example) b) <app@acme.example>", "app@acme.example(ceo@other.example)",
	`"<ceo@other.example>" <app@acme.example>`, `"CEO <ceo@other.example>" <app@acme.example>`, `"CEO <ceo@other.example" <app@acme.example>`, `"\"<ceo@other.example>\"" <app@acme.example>`,
	`"app@acme.example <ceo@other.example>`, `ceo@other.example" <app@acme.example>`, `"a" <ceo@other.example>" <app@acme.example>`,
	"<@other.example:app@acme.example>", "<@acme.example:app@acme.example>", "<@other.example,@acme.example:app@acme.example>", "<app@acme.example:ceo@other.example>", "@other.example <app@acme.example>",
	"app@acme.example@other.example", "ceo@other.example@acme.example", `"app@acme.example"@other.example`, "app@acme.example.other.example", "app@acme.example .other.example", "app@acme.example. other.example",
	"ceo @ other.example <app@acme.example>", "ceo@ other.example <app@acme.example>", "ceo @other . example <app@acme.example>", "ceo＠other.example <app@acme.example>", "ceo@other。example <app@acme.example>",
	"ceo@oth\u200ber.example <app@acme.example>", "ceo(c)@(c)other.example <app@acme.example>", "ceo@[192.0.2.1] <app@acme.example>", "<ceo@[IPv6:2001:db8::1]>, <app@acme.example>",
	"=?utf-8?q?=3Cceo=40other=2Eexample=3E?= <app@acme.example>", "=?utf-8?B?PGNlb0BvdGhlci5leGFtcGxlPg==?= <app@acme.example>", "=?utf-8?B?PGNlb0BvdGhlci5l?= =?utf-8?B?eGFtcGxlPg?= <app@acme.example>",
	"=?utf-8?q?ceo=40other=2Eexample=2C?= <app@acme.example>", "=?utf-8?q?ceo=40other=2Eexample?=, <app@acme.example>", "=?utf-8?q?ceo=40other=2Eexample?=", "=?utf-8?q?ceo?=@other.example <app@acme.example>",
	"ceo@=?utf-8?q?other=2Eexample?= <app@acme.example>", "=?utf-8?q?<ceo=40other=2Eexample>?= <app@acme.example>", `"=?utf-8?q?=3Cceo=40other=2Eexample=3E?=" <app@acme.example>`,
	"=?utf-7?q?+ADw-ceo+AEA-other.example+AD4-?= <app@acme.example>", "=?utf-8?q?=3Cceo=40other=2Eexample=00=3E?= <app@acme.example>", "=?utf-8?q?x=0A=3Cceo=40other=2Eexample=3E?= <app@acme.example>",
	"", " ", "<>", "Acme", "Acme <>", "<Acme>", "Acme:;", "app", "@", "app@", "<app@>", "<@acme.example>", "@acme.example", "()", `""`, "Acme @ Home",
	strings.Repeat("(", 20) + "app@acme.example", strings.Repeat("((", 8) + "ceo@other.example" + strings.Repeat("))", 8) + " <app@acme.example>", "app@acme.example" + strings.Repeat(" ", maxAuthor),
}

func TestAuthorize(t *testing.T) {
	check := func(fields string, may bool) {
		t.Helper()
		h, err := Read([]byte(fields+"\r\n\r\n"), known)
		if err != nil {
			t.Errorf("%q: %v", fields, err)
			return
		}
		err = h.Authorize(whose)
		var refusal *Refusal
		switch {
		case may && err != nil:
			t.Errorf("%q: %v", fields, err)
		case !may && !errors.As(err, &refusal):
			t.Errorf("%q may pass", fields)
		case !may && refusal.Kind != NoAuthor && refusal.Kind != Forbidden:
			t.Errorf("%q: %v", fields, refusal)
		}
	}
	for _, name := range own {
		check("From: "+name, true)
		check("From: app@acme.example\r\nSender: "+name, true)
		check("Resent-From: "+name+"\r\nFrom : app@acme.example", true)
		check("From: app@acme.example\r\nresent-sender:\r\n\t"+name, true)
	}
	for _, name := range others {
		check("From: "+name, false)
		check("From: app@acme.example\r\nSender : "+name, false)
		check("Resent-From: "+name+"\r\nFrom: app@acme.example", false)
		check("From: app@acme.example\r\nresent-sender:\r\n\t"+name, false)
	}
	check("From: app@acme.example\r\nFrom: app@acme.example", false)
	check("From: app@acme.example\r\nFrom:", false)
	check("From:\r\nFrom: app@acme.example", false)
	check("From: app@acme.example\r\nFrom : ceo@other.example", false)
	check("From: app@acme.example\r\nSender: app@acme.example\r\nSender: app@acme.example", false)
	check("Sender: app@acme.example", false)
	check("Resent-From: app@acme.example", false)
	check("Subject: x\r\n\r\nFrom: app@acme.example", false)
	check("From: app@acme.example\r\nResent-From: app@acme.example\r\nResent-From: shop@acme.example", true)
	check("From: app@acme.example\r\nReply-To: ceo@other.example\r\nX-From: ceo@other.example", true)
}

// The reason names what is wrong, so that the client can mend it.
func TestReasons(t *testing.T) {
	for fields, want := range map[string]string{
		"Subject: x":                                       "need one From field, and there is none",
		"From: app@acme.example\r\nFrom: b":                "need one From field, and there are 2",
		"From: ceo@other.example, Inc. <app@acme.example>": `From names "ceo@other.example", and you may not send from this address`,
		"From: Jörg <jörg@other.example>":                  `From names "j\u00f6rg@other.example", and you may not send from this address`,
		"From: Acme":                                       "From: no address",
		"From: app@acme.example\r\nSender: <a@b.c>":        `Sender names "a@b.c", and you may not send from this address`,
		"From: =?UTF-7?q?x?= <app@acme.example>":           `From: an encoded-word in "UTF-7"`,
	} {
		h, err := Read([]byte(fields+"\r\n\r\n"), known)
		if err == nil {
			err = h.Authorize(whose)
		}
		if err == nil || err.Error() != want {
			t.Errorf("%q: %v, want %s", fields, err, want)
		}
	}
}

func TestAuthor(t *testing.T) {
	for fields, want := range map[string]string{
		"From: Acme <app@acme.example>":                          "app@acme.example",
		"From: a@acme.example, b@acme.example":                   "a@acme.example",
		"From: a@acme.example\r\nSender: Bot <bot@acme.example>": "bot@acme.example",
		"From: Acme, Inc. <app@acme.example>":                    "app@acme.example",
		"From: shop@acme.example <app@acme.example>":             "app@acme.example",
		"From: \"a b\"@acme.example":                             `"a b"@acme.example`,
		"Subject: x":                                             "",
	} {
		h, err := Read([]byte(fields+"\r\n\r\n"), known)
		if got := h.Author(); err != nil || got != want {
			t.Errorf("%q: %s, %v, want %s", fields, got, err, want)
		}
	}
}

// Whatever is there, what the grammar finds is found, and somebody else's
// mailbox behind, before or around it is never passed over.
func FuzzAuthor(f *testing.F) {
	for _, name := range append(own, others...) {
		f.Add(name)
	}
	f.Fuzz(func(t *testing.T, value string) {
		if strings.ContainsAny(value, "\r\n") {
			return
		}
		may := func(value string) error {
			h, err := Read([]byte("From: "+value+"\r\n\r\n"), known)
			if err != nil {
				return err
			}
			return h.Authorize(whose)
		}
		if boxes, err := strict.ParseList(value); err == nil && may(value) == nil {
			for _, box := range boxes {
				if !whose(box.Address) {
					t.Fatalf("%q may pass", value)
				}
			}
		}
		for _, spoof := range []string{value + "<ceo@other.example>", "<ceo@other.example>" + value, fmt.Sprintf("\"%s<ceo@other.example>\" <app@acme.example>", value)} {
			if may(spoof) == nil {
				t.Fatalf("%q may pass", spoof)
			}
		}
	})
}
