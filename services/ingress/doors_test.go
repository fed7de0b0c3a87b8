package ingress

import (
	"fmt"
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/postrider/postrider/services/ingress/internal/smtpd"
)

func TestListenersAreRead(t *testing.T) {
	var l listeners
	err := l.Decode(`
		# one for each kind of client
		10.0.0.5:25 networks=10.0.0.0/8,::1/128 tls=no auth=no normalize-newlines=yes; :2526 auth=required tls=required max-recipients=50
		[::1]:4650 tls=implicit hide-clients=yes domains=example.com,*.example.net networks=none idle-timeout=90s max-message-bytes=1000000 # last
	`)
	if err != nil || len(l.all) != 3 {
		t.Fatalf("%d listeners, %v", len(l.all), err)
	}
	common := smtpd.Config{MaxRecipients: 1000, RelayNetworks: []netip.Prefix{netip.MustParsePrefix("127.0.0.0/8")}}
	var doors []smtpd.Door
	for i := range l.all {
		door, err := l.all[i].door(common)
		if err != nil {
			t.Fatal(err)
		}
		doors = append(doors, door)
	}
	inside, submission, implicit := doors[0], doors[1], doors[2]
	if !inside.NoTLS || !inside.NoAuth || !inside.Config.NormalizeNewlines || len(inside.Config.RelayNetworks) != 2 || inside.Config.MaxRecipients != 1000 {
		t.Errorf("%+v, %+v", inside, inside.Config)
	}
	if !submission.Submission || !submission.NeedTLS || submission.Config.MaxRecipients != 50 || len(submission.Config.RelayNetworks) != 1 || submission.Config.NormalizeNewlines {
		t.Errorf("%+v, %+v", submission, submission.Config)
	}
	if c := implicit.Config; !implicit.ImplicitTLS || !c.HideClients || len(c.RelayDomains) != 2 || len(c.RelayNetworks) != 0 ||
		c.IdleTimeout != 90*time.Second || c.MaxMessageBytes != 1000000 {
		t.Errorf("%+v, %+v", implicit, c)
	}
	if common.MaxRecipients != 1000 || len(common.RelayNetworks) != 1 {
		t.Error("a listener changed what the others have")
	}
}

func TestListenersAreRefused(t *testing.T) {
	for text, why := range map[string]string{
		"25":                              "missing port",
		":25 networks":                    "no word=value",
		":25 network=10.0.0.0/8":          "no such word",
		":25 networks=10.0.0.0":           "10.0.0.0",
		":25 tls=maybe":                   "no such value",
		":25 hide-clients=true":           "no such value",
		":25 max-recipients=many":         "many",
		":25 idle-timeout=5":              "5",
		":25 tls=no tls=implicit":         "twice",
		":25\n:26 auth=required nonsense": ":26",
	} {
		if err := new(listeners).Decode(text); err == nil || !strings.Contains(err.Error(), why) {
			t.Errorf("%q: %v, want %q", text, err, why)
		}
	}
}

// FuzzListeners: what is read is read again the same.
func FuzzListeners(f *testing.F) {
	f.Add("10.0.0.5:25 networks=10.0.0.0/8 tls=no; :2526 auth=required # x")
	f.Add("[::1]:465 tls=implicit\n:25 max-line=0 domains=none")
	f.Fuzz(func(t *testing.T, text string) {
		var l, again listeners
		if l.Decode(text) != nil {
			return
		}
		var b strings.Builder
		for _, one := range l.all {
			b.WriteString(one.address)
			for _, w := range one.words {
				fmt.Fprintf(&b, " %s=%s", w.name, w.value)
			}
			b.WriteString(";")
		}
		if err := again.Decode(b.String()); err != nil || fmt.Sprint(again) != fmt.Sprint(l) {
			t.Fatalf("%q is %v, then %v (%v)", text, l, again, err)
		}
	})
}
