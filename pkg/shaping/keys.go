package shaping

import (
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/postrider/postrider/pkg/mail"
	"github.com/postrider/postrider/pkg/retry"
)

// key reads one value of the file.
type key struct {
	limit bool // it belongs to the site, not only to the domain
	adds  bool // to what the layers below set
	read  func(value any) (apply func(*draft), note string, err error)
	show  func(v *Values) string // nil for a key of a provider: Shared shows it
}

// setting reads a value.
func (k key) setting(word string, value any) (s setting, note string, err error) {
	apply, note, err := k.read(value)
	return setting{key: word, text: fmt.Sprint(value), adds: k.adds, apply: apply}, note, err
}

// keys is every key with a meaning that a block may have besides those of its
// kind.
var keys = map[string]key{
	"connection_limit":              limit(field(count, func(v *Values) *int { return &v.Connections })),
	"max_connection_rate":           limit(field(rate, func(v *Values) *Rate { return &v.ConnectionRate })),
	"max_message_rate":              limit(field(rate, func(v *Values) *Rate { return &v.MessageRate })),
	"max_deliveries_per_connection": limit(field(count, func(v *Values) *int { return &v.MessagesPerConnection })),
	"max_ready":                     limit(field(count, func(v *Values) *int { return &v.Ready })),
	"homes":                         limit(field(parts, func(v *Values) *int { return &v.Homes })),
	"source_selection_rate":         field(rate, func(v *Values) *Rate { return &v.SelectionRate }),
	"max_recipients_per_batch":      field(count, func(v *Values) *int { return &v.RecipientsPerTransaction }),
	"max_domains_per_batch":         domains(),
	"idle_timeout":                  field(duration, func(v *Values) *retry.Duration { return (*retry.Duration)(&v.IdleTimeout) }),
	"enable_tls":                    field(tlsLevel, func(v *Values) *mail.TLSLevel { return &v.TLS }),
	"enable_dane":                   field(boolean, func(v *Values) *bool { return &v.DANE }),
	"enable_mta_sts":                field(boolean, func(v *Values) *bool { return &v.MTASTS }),
	"retry_schedule":                field(schedule, func(v *Values) *retry.Schedule { return &v.RetrySchedule }),
	"max_age":                       field(duration, func(v *Values) *retry.Duration { return (*retry.Duration)(&v.MessageLifetime) }),
	"delay_notice_after":            field(duration, func(v *Values) *retry.Duration { return (*retry.Duration)(&v.DelayNoticeAfter) }),
	"provider_name":                 field(text, func(v *Values) *string { return &v.Provider }),

	"connect_timeout":    wait(duration, func(t *Timeouts) *time.Duration { return &t.Connect }),
	"banner_timeout":     wait(duration, func(t *Timeouts) *time.Duration { return &t.Banner }),
	"ehlo_timeout":       wait(duration, func(t *Timeouts) *time.Duration { return &t.Hello }),
	"starttls_timeout":   wait(duration, func(t *Timeouts) *time.Duration { return &t.StartTLS }),
	"mail_from_timeout":  wait(duration, func(t *Timeouts) *time.Duration { return &t.Mail }),
	"rcpt_to_timeout":    wait(duration, func(t *Timeouts) *time.Duration { return &t.Rcpt }),
	"data_timeout":       wait(duration, func(t *Timeouts) *time.Duration { return &t.Data }),
	"data_block_timeout": wait(duration, func(t *Timeouts) *time.Duration { return &t.Block }),
	"data_dot_timeout":   wait(dotTimeout, func(t *Timeouts) *time.Duration { return &t.Dot }),
	"rset_timeout":       wait(duration, func(t *Timeouts) *time.Duration { return &t.Reset }),

	"additional_connection_limits":      limit(named(count, func(l *Shared, n int) { l.Connections = n })),
	"additional_message_rate_throttles": limit(named(rate, func(l *Shared, r Rate) { l.MessageRate = r })),
	"additional_source_selection_rates": named(rate, func(l *Shared, r Rate) { l.SelectionRate = r }),
}

// providerKeys is what the block of a provider may have besides.
func providerKeys(id string) map[string]key {
	return map[string]key{
		"provider_connection_limit":      limit(ofProvider(id, count, func(l *Shared, n int) { l.Connections = n })),
		"provider_max_message_rate":      limit(ofProvider(id, rate, func(l *Shared, r Rate) { l.MessageRate = r })),
		"provider_source_selection_rate": ofProvider(id, rate, func(l *Shared, r Rate) { l.SelectionRate = r }),
	}
}

func limit(k key) key {
	k.limit = true
	return k
}

// value reads a value; the note is a warning.
type value[T any] func(value any) (read T, note string, err error)

// into makes a key of how its value is read and where it goes.
func into[T any](read value[T], set func(*draft, T)) key {
	return key{read: func(value any) (func(*draft), string, error) {
		v, note, err := read(value)
		if err != nil {
			return nil, "", err
		}
		return func(d *draft) { set(d, v) }, note, nil
	}}
}

// field makes a key of a field of Values.
func field[T any](read value[T], at func(*Values) *T) key {
	k := into(read, func(d *draft, v T) { *at(&d.Values) = v })
	k.show = func(v *Values) string { return fmt.Sprint(*at(v)) }
	return k
}

// domains makes the key of the domains in one transaction.
func domains() key {
	k := field(count, func(v *Values) *int { return &v.DomainsPerTransaction })
	k.show = func(v *Values) string {
		if v.DomainsPerTransaction == 0 {
			return "1, at a smart host any number"
		}
		return fmt.Sprint(v.DomainsPerTransaction)
	}
	return k
}

// wait makes a key of one of the timeouts.
func wait(read value[retry.Duration], of func(*Timeouts) *time.Duration) key {
	return field(read, func(v *Values) *retry.Duration { return (*retry.Duration)(of(&v.Timeouts)) })
}

// ofProvider makes a key that limits all sites of a provider.
func ofProvider[T any](id string, read value[T], set func(*Shared, T)) key {
	return into(read, func(d *draft, v T) {
		share(&d.provider, id, func(l *Shared) { set(l, v) })
	})
}

// named makes a key whose value is a table of limits by name. Those of other
// layers hold on, as with KumoMTA, unless they have the same name.
func named[T any](read value[T], set func(*Shared, T)) key {
	k := into(func(value any) (map[string]T, string, error) {
		table, ok := value.(map[string]any)
		if !ok {
			return nil, "", fmt.Errorf("%v: want a table of limits by name, such as {\"all of it\" = ...}", value)
		}
		limits := map[string]T{}
		var notes string
		var errs []error
		for _, name := range slices.Sorted(maps.Keys(table)) {
			v, note, err := read(table[name])
			if err != nil {
				errs = append(errs, fmt.Errorf("%q: %w", name, err))
			}
			if strings.HasPrefix(name, providerSite) {
				errs = append(errs, fmt.Errorf("%q: names that begin with %q are taken", name, providerSite))
			}
			limits[name] = v
			notes = note
		}
		return limits, notes, errors.Join(errs...)
	}, func(d *draft, limits map[string]T) {
		for name, v := range limits {
			share(&d.shared, name, func(l *Shared) { set(l, v) })
		}
	})
	k.adds = true
	return k
}

// noteLocal says what becomes of KumoMTA's prefix local:, which lets each of
// its nodes have the limit.
const noteLocal = `"local:" has no effect: a limit holds for all processes together`

// cutLocal takes the prefix off.
func cutLocal(text string) (rest, note string) {
	rest, local := strings.CutPrefix(text, "local:")
	if local {
		note = noteLocal
	}
	return rest, note
}

// tlsLevels maps KumoMTA's words, and ours, to what a route demands.
// Opportunistic TLS checks no certificate here: mail that would leave in
// plaintext without TLS gains nothing from being refused over a bad one.
var tlsLevels = map[string]mail.TLSLevel{
	"Disabled": mail.TLSNone, "none": mail.TLSNone,
	"Opportunistic": mail.TLSMay, "OpportunisticInsecure": mail.TLSMay, "may": mail.TLSMay,
	"RequiredInsecure": mail.TLSEncrypt, "encrypt": mail.TLSEncrypt,
	"Required": mail.TLSVerify, "verify": mail.TLSVerify,
	"dane": mail.TLSDANE,
}

// count reads a whole number, or one as text: KumoMTA takes both.
func count(value any) (int, string, error) {
	n, ok := value.(int64)
	note := ""
	if text, isText := value.(string); isText {
		var rest string
		rest, note = cutLocal(text)
		var err error
		n, err = parseCount(rest)
		ok = err == nil
	}
	if !ok || n < 1 || n > maxEvents {
		return 0, "", fmt.Errorf("%v: want a whole number from 1 to %d", value, maxEvents)
	}
	return int(n), note, nil
}

// parts reads into how many parts a site is divided.
func parts(value any) (int, string, error) {
	n, note, err := count(value)
	if err == nil && n > mail.Slots {
		return 0, "", fmt.Errorf("%v: want a whole number from 1 to %d", value, mail.Slots)
	}
	return n, note, err
}

func rate(value any) (Rate, string, error) {
	text, ok := value.(string)
	if !ok {
		return Rate{}, "", fmt.Errorf("%v: want a rate in quotes, such as \"100/min\"", value)
	}
	text, note := cutLocal(text)
	r, err := ParseRate(text)
	return r, note, err
}

func duration(value any) (retry.Duration, string, error) {
	text, ok := value.(string)
	if !ok {
		return 0, "", fmt.Errorf("%v: want a duration in quotes, such as \"5 days\"", value)
	}
	d, err := retry.ParseDuration(text)
	return retry.Duration(d), "", err
}

// dotTimeout reads the wait for the reply to the final dot.
func dotTimeout(value any) (retry.Duration, string, error) {
	d, note, err := duration(value)
	if err == nil && time.Duration(d) < DefaultTimeouts.Dot {
		// RFC 5321 §4.5.3.2.6.
		note = "shorter than 10 minutes: a host that takes longer gets the message twice"
	}
	return d, note, err
}

func schedule(value any) (retry.Schedule, string, error) {
	text, ok := value.(string)
	if !ok {
		return retry.Schedule{}, "", fmt.Errorf("%v: want intervals in quotes, such as \"5m,10m,1h\"", value)
	}
	s, err := retry.Parse(text)
	return s, "", err
}

// maxName bounds a name that becomes a label of metrics.
const maxName = 100

func text(value any) (string, string, error) {
	text, ok := value.(string)
	if !ok || text == "" || len(text) > maxName {
		return "", "", fmt.Errorf("%v: want a text of 1 to %d octets in quotes", value, maxName)
	}
	return text, "", nil
}

func boolean(value any) (bool, string, error) {
	on, ok := value.(bool)
	if !ok {
		return false, "", fmt.Errorf("%v: want true or false", value)
	}
	return on, "", nil
}

func tlsLevel(value any) (mail.TLSLevel, string, error) {
	text, _ := value.(string)
	level, ok := tlsLevels[text]
	if !ok {
		return "", "", fmt.Errorf("%v: want Disabled, Opportunistic, OpportunisticInsecure, RequiredInsecure, Required, none, may, encrypt, verify or dane", value)
	}
	note := ""
	if text == "Opportunistic" {
		note = "certificates are not checked unless TLS is required"
	}
	return level, note, nil
}
