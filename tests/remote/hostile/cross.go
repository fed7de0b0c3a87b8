package hostile

import (
	"fmt"
	"strings"
	"time"

	"github.com/postrider/postrider/pkg/smtptest"
)

// points are where the faults of crossed happen: the name of the phase in the
// table, in names, and the timeout that is waited for there.
var points = [6]struct {
	at      string
	phase   smtptest.Phase
	timeout string
	happy   smtptest.Act
	code    int // of the happy reply
	message string
}{
	{"greeting", smtptest.Banner, "banner_timeout", smtptest.Reply(220, "mx.test ESMTP"), 220, "mx.test ESMTP"},
	{"EHLO", smtptest.Hello, "ehlo_timeout", smtptest.Offer("PIPELINING", "8BITMIME"), 250, "mx.test"},
	{"MAIL", smtptest.Mail, "mail_from_timeout", smtptest.Reply(250, "2.1.0 ok"), 250, "2.1.0 ok"},
	{"RCPT", smtptest.Rcpt, "rcpt_to_timeout", smtptest.Reply(250, "2.1.5 ok"), 250, "2.1.5 ok"},
	{"DATA", smtptest.Data, "data_timeout", smtptest.Reply(354, "go ahead"), 354, "go ahead"},
	{"final dot", smtptest.Dot, "data_dot_timeout", smtptest.Reply(250, "2.0.0 taken"), 250, "2.0.0 taken"},
}

// fault is what a host can do at every point of the dialogue. want has what
// comes of it at each; without outcomes it is no fault there.
type fault struct {
	name, words string
	do          smtptest.Act
	patience    bool // the timeout of the phase is waited for
	want        [6]Want
}

// crossed is every fault at every point.
func crossed() []*Scenario {
	var all []*Scenario
	for _, f := range faults() {
		for i, p := range points {
			if f.want[i].Outcomes == nil {
				continue
			}
			// A host that does not know EHLO knows no HELO either.
			rules := rules(smtptest.Rule{At: p.phase, Do: f.do}, smtptest.Rule{At: smtptest.Helo, Do: f.do})
			if p.phase != smtptest.Hello {
				rules = at(p.phase, f.do)
			}
			s := &Scenario{
				Name: f.name + "-at-" + strings.ToLower(strings.ReplaceAll(p.at, " ", "-")),
				At:   p.at, Host: f.words, Script: rules, Want: f.want[i],
			}
			if f.patience {
				s.Shaping = p.timeout + ` = "1s"`
			}
			all = append(all, s)
		}
	}
	for i, p := range points {
		all = append(all,
			&Scenario{
				Name: "bytewise-at-" + string(p.phase), At: p.at, Host: "gives its reply one octet at a time",
				Script: at(p.phase, smtptest.Bytewise(p.happy)), Want: relayed(),
			},
			&Scenario{
				Name: "nuls-at-" + string(p.phase), At: p.at, Host: "has NULs in the text of its reply",
				Script: at(p.phase, smtptest.Raw(fmt.Sprintf("%d %s\x00\x00\r\n", p.code, p.message))), Want: relayed(),
			},
			&Scenario{
				Name: "drip-at-" + string(p.phase), At: p.at, Host: "gives its reply one octet at a time, and never ends",
				Script:  at(p.phase, smtptest.Drip(300*time.Millisecond, smtptest.Endless(fmt.Sprintf("%d-%s\r\n", p.code, p.message)))),
				Shaping: p.timeout + ` = "1s"`, Want: broken("4.4.2")[i],
			},
			&Scenario{
				Name: "mixed-codes-at-" + string(p.phase), At: p.at, Host: "gives another code in the first line than in the last, which counts",
				Script: at(p.phase, smtptest.As(p.code, smtptest.Raw(fmt.Sprintf("450-4.0.0 first\r\n%d %s\r\n", p.code, p.message)))), Want: relayed(),
			},
			&Scenario{
				Name: "early-at-" + string(p.phase), At: p.at, Host: "gives the reply to what was not asked yet behind the one that is due",
				Script: at(p.phase, smtptest.Then(p.happy, smtptest.Raw("250 2.0.0 done\r\n"))), Want: early(i),
			},
		)
	}
	return all
}

// every is a fault that reaches as far at each point: before the transaction
// and in it another host is tried, except after the final dot.
func every(status string, dot Want) [6]Want {
	return [6]Want{before(status), before(status), next(status), next(status), next(status), dot}
}

// broken is the connection that is of no use any more. Without a reply to the
// final dot nobody knows.
func broken(status string) [6]Want { return every(status, unsure(status)) }

// early is a host that is one reply ahead. What it says would be taken for the
// answer to the next command.
func early(i int) Want {
	switch points[i].phase {
	case smtptest.Banner:
		return before("4.5.0")
	case smtptest.Hello:
		return before("4.5.0")
	case smtptest.Dot:
		return relayed() // the message is there; the connection is given up
	}
	return next("4.5.0")
}

func faults() []fault {
	drop, reply, raw := smtptest.Drop(), smtptest.Reply, smtptest.Raw
	later, no := "4.7.0", "5.7.1" // 4.7.1 at RCPT is greylisting, which has waits of its own
	garbage := func(name, words string, do smtptest.Act) fault {
		return fault{name, words, do, false, broken("4.5.0")}
	}
	return []fault{
		{"4yz", "replies 451 4.7.0", reply(451, "4.7.0 come back later"), false,
			[6]Want{before(later), before(later), waits(later), waits(later), waits(later), waits(later)}},
		{"full", "replies 452 4.3.1: its disk is full", reply(452, "4.3.1 no space"), false,
			[6]Want{before("4.3.1"), before("4.3.1"), next("4.3.1"), waits("4.3.1"), next("4.3.1"), next("4.3.1")}},
		{"5yz", "replies 550 5.7.1", reply(550, "5.7.1 not you"), false,
			[6]Want{before("4.7.1"), before("4.7.1"), fails(no), fails(no), fails(no), fails(no)}},
		{"bare-4yz", "replies 450 without an enhanced code", reply(450, "later"), false,
			[6]Want{before("4.0.0"), before("4.0.0"), waits("4.0.0"), waits("4.2.0"), waits("4.0.0"), waits("4.0.0")}},
		{"bare-5yz", "replies 554 without an enhanced code", reply(554, "no"), false,
			[6]Want{before("4.0.0"), before("4.0.0"), fails("5.0.0"), fails("5.0.0"), fails("5.0.0"), fails("5.0.0")}},
		{"421", "replies 421 and closes", smtptest.Then(reply(421, "4.3.2 going down"), drop), false,
			every("4.3.2", next("4.3.2"))},
		{"421-stays", "replies 421 and does not close", reply(421, "4.3.2 going down"), false,
			every("4.3.2", next("4.3.2"))},
		{"3yz", "replies 334, which has no meaning there", reply(334, "what?"), false,
			[6]Want{before("4.5.0"), before("4.5.0"), next("4.5.0"), next("4.5.0"), {}, unsure("4.5.0")}},
		{"421-lines", "replies 421 in two lines and closes", smtptest.Then(reply(421, "4.3.2 going down", "4.3.2 for hours"), drop), false,
			every("4.3.2", next("4.3.2"))},
		{"odd-4yz", "replies 451 with an enhanced code of another class, which does not count", reply(451, "5.1.1 no such user"), false,
			[6]Want{before("4.0.0"), before("4.0.0"), waits("4.0.0"), waits("4.0.0"), waits("4.0.0"), waits("4.0.0")}},
		{"odd-5yz", "replies 550 with an enhanced code of another class, which does not count", reply(550, "4.2.1 later"), false,
			[6]Want{before("4.0.0"), before("4.0.0"), fails("5.0.0"), fails("5.0.0"), fails("5.0.0"), fails("5.0.0")}},
		{"odd-250", "replies 250 with an enhanced code of another class, which does not count", reply(250, "5.1.1 no such user"), false,
			[6]Want{{}, {}, relayed(), relayed(), {}, relayed()}},
		{"odd-2yz", "replies 299", raw("299 fine\r\n"), false,
			[6]Want{relayed(), relayed(), relayed(), relayed(), next("4.5.0"), relayed()}},
		garbage("199", "replies 199", raw("199 soon\r\n")),
		garbage("654", "replies 654", raw("654 5.0.0 never\r\n")),
		garbage("999", "replies 999", raw("999 never\r\n")),
		garbage("nul", "has a NUL in the code of its reply", raw("2\x0050 ok\r\n")),
		garbage("letters", "speaks another protocol", raw("HTTP/1.1 400 Bad Request\r\n\r\n")),
		garbage("binary", "sends binary data with NULs and no line end", smtptest.Then(raw(strings.Repeat("\x00\xff\x80\x01", 1024)), smtptest.Stall())),
		garbage("endless-line", "sends a line without end", smtptest.Endless("250 more and more")),
		garbage("endless-lines", "sends a reply of lines without end", smtptest.Endless("250-more\r\n")),
		{"half", "closes inside its reply", smtptest.Then(raw("25"), drop), false, broken("4.4.2")},
		{"half-lines", "closes between two lines of its reply", smtptest.Then(raw("550-one\r\n"), drop), false, broken("4.4.2")},
		{"drop", "closes", drop, false, broken("4.4.2")},
		{"rst", "closes with RST", smtptest.Reset(), false,
			[6]Want{reset(), before("4.4.2"), next("4.4.2"), next("4.4.2"), next("4.4.2"), unsure("4.4.2")}},
		{"stall", "says nothing", smtptest.Stall(), true, broken("4.4.2")},
	}
}
