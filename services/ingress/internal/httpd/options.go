package httpd

import (
	"strings"
	"time"

	"github.com/postrider/postrider/pkg/mail"
)

// maxDelay is how far away send_at may be.
const maxDelay = 30 * 24 * time.Hour

// envelope is what all messages of a request share.
type envelope struct {
	reversePath address // text "" is the null reverse-path
	notify      mail.Notify
	ret         mail.Ret
	envID       string
	priority    int16
	campaign    string
	traceparent string    // of the content, where the request has none
	sendAt      time.Time // zero: now
	expiresAt   time.Time // zero: as configured
}

// faults are what is wrong with a request. at makes the place of each.
type faults struct{ all []Fault }

// maxFaults bounds the answer.
const maxFaults = 50

func (f *faults) add(where Fault, detail string) {
	if len(f.all) < maxFaults {
		where.Detail = detail
		f.all = append(f.all, where)
	}
}

// full reports that no more is noted.
func (f *faults) full() bool { return len(f.all) >= maxFaults }

func (f *faults) problem(detail string) error {
	if len(f.all) == 0 {
		return nil
	}
	return refuse(400, detail, f.all...)
}

// envelope checks the options; where names the place of one.
func (o *Options) envelope(now time.Time, where func(name string) Fault, f *faults) envelope {
	e := envelope{envID: o.EnvID, priority: o.Priority, campaign: o.Campaign}
	if o.Priority < -9 || o.Priority > 9 {
		f.add(where("priority"), "want -9 to 9")
	}
	for _, word := range o.Notify {
		switch word {
		case "never":
			e.notify |= mail.NotifyNever
		case "success":
			e.notify |= mail.NotifySuccess
		case "failure":
			e.notify |= mail.NotifyFailure
		case "delay":
			e.notify |= mail.NotifyDelay
		default:
			f.add(where("notify"), "want never, or some of success, failure, delay")
		}
	}
	if e.notify&mail.NotifyNever != 0 && e.notify != mail.NotifyNever {
		f.add(where("notify"), "never stands alone")
	}
	switch o.Ret {
	case "":
	case "full":
		e.ret = mail.RetFull
	case "hdrs":
		e.ret = mail.RetHdrs
	default:
		f.add(where("ret"), "want full or hdrs")
	}
	for _, text := range []struct{ name, value string }{{"envid", o.EnvID}, {"campaign", o.Campaign}} {
		if strings.ContainsFunc(text.value, func(r rune) bool { return r < ' ' || r > '~' }) {
			f.add(where(text.name), "want printable ASCII")
		}
		if len(text.value) > 100 { // RFC 3461 §4.4
			f.add(where(text.name), "longer than 100 characters")
		}
	}
	if o.SendAt != nil {
		e.sendAt = *o.SendAt
		if e.sendAt.Sub(now) > maxDelay {
			f.add(where("send_at"), "more than 30 days from now")
		}
	}
	if o.ExpiresAt != nil {
		e.expiresAt = *o.ExpiresAt
		if !e.expiresAt.After(now) || !e.expiresAt.After(e.sendAt) {
			f.add(where("expires_at"), "not after now and send_at")
		}
	}
	return e
}
