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

// setting is one value of one block, ready to be laid over the layers below.
type setting struct {
	key   string
	apply func(*draft)
}

// key reads one value. limit says that it belongs to the site, not only to
// the domain.
type key struct {
	limit bool
	read  func(value any) (func(*draft), error)
}

// keys is every key that a block may have besides those of its kind.
var keys = map[string]key{
	"connection_limit":              {true, into(count, func(d *draft, n int) { d.Connections = n })},
	"max_connection_rate":           {true, into(rate, func(d *draft, r Rate) { d.ConnectionRate = r })},
	"max_message_rate":              {true, into(rate, func(d *draft, r Rate) { d.MessageRate = r })},
	"max_deliveries_per_connection": {true, into(count, func(d *draft, n int) { d.MessagesPerConnection = n })},
	"max_ready":                     {true, into(count, func(d *draft, n int) { d.Ready = n })},
	"source_selection_rate":         {false, into(rate, func(d *draft, r Rate) { d.SelectionRate = r })},
	"max_recipients_per_batch":      {false, into(count, func(d *draft, n int) { d.RecipientsPerTransaction = n })},
	"idle_timeout":                  {false, into(duration, func(d *draft, t time.Duration) { d.IdleTimeout = t })},
	"enable_tls":                    {false, into(tlsLevel, func(d *draft, l mail.TLSLevel) { d.TLS = l })},
	"retry_schedule":                {false, into(schedule, func(d *draft, s retry.Schedule) { d.RetrySchedule = s })},
	"max_age":                       {false, into(duration, func(d *draft, t time.Duration) { d.MessageLifetime = t })},
	"delay_notice_after":            {false, into(duration, func(d *draft, t time.Duration) { d.DelayNoticeAfter = t })},
	"provider_name":                 {false, into(text, func(d *draft, name string) { d.Provider = name })},

	"additional_connection_limits":      {true, named(count, func(l *Shared, n int) { l.Connections = n })},
	"additional_message_rate_throttles": {true, named(rate, func(l *Shared, r Rate) { l.MessageRate = r })},
	"additional_source_selection_rates": {false, named(rate, func(l *Shared, r Rate) { l.SelectionRate = r })},

	"connect_timeout":    {false, wait(func(t *Timeouts) *time.Duration { return &t.Connect })},
	"banner_timeout":     {false, wait(func(t *Timeouts) *time.Duration { return &t.Banner })},
	"ehlo_timeout":       {false, wait(func(t *Timeouts) *time.Duration { return &t.Hello })},
	"starttls_timeout":   {false, wait(func(t *Timeouts) *time.Duration { return &t.StartTLS })},
	"mail_from_timeout":  {false, wait(func(t *Timeouts) *time.Duration { return &t.Mail })},
	"rcpt_to_timeout":    {false, wait(func(t *Timeouts) *time.Duration { return &t.Rcpt })},
	"data_timeout":       {false, wait(func(t *Timeouts) *time.Duration { return &t.Data })},
	"data_block_timeout": {false, wait(func(t *Timeouts) *time.Duration { return &t.Block })},
	"data_dot_timeout":   {false, wait(func(t *Timeouts) *time.Duration { return &t.Dot })},
	"rset_timeout":       {false, wait(func(t *Timeouts) *time.Duration { return &t.Reset })},
}

// providerKeys is what the block of a provider may have besides.
func providerKeys(id string) map[string]key {
	return map[string]key{
		"provider_connection_limit":      {true, ofProvider(id, count, func(l *Shared, n int) { l.Connections = n })},
		"provider_max_message_rate":      {true, ofProvider(id, rate, func(l *Shared, r Rate) { l.MessageRate = r })},
		"provider_source_selection_rate": {false, ofProvider(id, rate, func(l *Shared, r Rate) { l.SelectionRate = r })},
	}
}

// into makes a key of how its value is read and where it goes.
func into[T any](read func(any) (T, error), set func(*draft, T)) func(any) (func(*draft), error) {
	return func(value any) (func(*draft), error) {
		v, err := read(value)
		if err != nil {
			return nil, err
		}
		return func(d *draft) { set(d, v) }, nil
	}
}

// wait makes a key of one of the timeouts.
func wait(of func(*Timeouts) *time.Duration) func(any) (func(*draft), error) {
	return into(duration, func(d *draft, t time.Duration) { *of(&d.Timeouts) = t })
}

// ofProvider makes a key that limits all sites of a provider.
func ofProvider[T any](id string, read func(any) (T, error), set func(*Shared, T)) func(any) (func(*draft), error) {
	return into(read, func(d *draft, v T) {
		share(&d.provider, id, func(l *Shared) { set(l, v) })
	})
}

// named makes a key whose value is a table of limits by name. Those of other
// layers hold on, as with KumoMTA, unless they have the same name.
func named[T any](read func(any) (T, error), set func(*Shared, T)) func(any) (func(*draft), error) {
	return into(func(value any) (map[string]T, error) {
		table, ok := value.(map[string]any)
		if !ok {
			return nil, fmt.Errorf("%v: want a table of limits by name, such as {\"all of it\" = ...}", value)
		}
		limits := map[string]T{}
		var errs []error
		for _, name := range slices.Sorted(maps.Keys(table)) {
			v, err := read(table[name])
			if err != nil {
				errs = append(errs, fmt.Errorf("%q: %w", name, err))
			}
			if strings.HasPrefix(name, providerSite) {
				errs = append(errs, fmt.Errorf("%q: names that begin with %q are taken", name, providerSite))
			}
			limits[name] = v
		}
		return limits, errors.Join(errs...)
	}, func(d *draft, limits map[string]T) {
		for name, v := range limits {
			share(&d.shared, name, func(l *Shared) { set(l, v) })
		}
	})
}

// tlsLevels maps KumoMTA's words, and ours, to what a route demands.
// Opportunistic TLS checks no certificate here: mail that would leave in
// plaintext without TLS gains nothing from being refused over a bad one.
var tlsLevels = map[string]mail.TLSLevel{
	"Disabled": mail.TLSNone, "none": mail.TLSNone,
	"Opportunistic": mail.TLSMay, "OpportunisticInsecure": mail.TLSMay, "may": mail.TLSMay,
	"RequiredInsecure": mail.TLSEncrypt, "encrypt": mail.TLSEncrypt,
	"Required": mail.TLSVerify, "verify": mail.TLSVerify,
}

func count(value any) (int, error) {
	n, ok := value.(int64)
	if !ok || n < 1 || n > maxEvents {
		return 0, fmt.Errorf("%v: want a whole number from 1 to %d", value, maxEvents)
	}
	return int(n), nil
}

func rate(value any) (Rate, error) {
	text, ok := value.(string)
	if !ok {
		return Rate{}, fmt.Errorf("%v: want a rate in quotes, such as \"100/min\"", value)
	}
	return ParseRate(text)
}

func duration(value any) (time.Duration, error) {
	text, ok := value.(string)
	if !ok {
		return 0, fmt.Errorf("%v: want a duration in quotes, such as \"5 days\"", value)
	}
	return retry.ParseDuration(text)
}

func schedule(value any) (retry.Schedule, error) {
	text, ok := value.(string)
	if !ok {
		return retry.Schedule{}, fmt.Errorf("%v: want intervals in quotes, such as \"5m,10m,1h\"", value)
	}
	return retry.Parse(text)
}

func text(value any) (string, error) {
	text, ok := value.(string)
	if !ok {
		return "", fmt.Errorf("%v: want a text in quotes", value)
	}
	return text, nil
}

func tlsLevel(value any) (mail.TLSLevel, error) {
	text, _ := value.(string)
	level, ok := tlsLevels[text]
	if !ok {
		return "", fmt.Errorf("%v: want Disabled, Opportunistic, OpportunisticInsecure, RequiredInsecure, Required, none, may, encrypt or verify", value)
	}
	return level, nil
}
