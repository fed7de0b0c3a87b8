package shaping

import (
	"fmt"
	"time"

	"github.com/postrider/postrider/pkg/mail"
	"github.com/postrider/postrider/pkg/retry"
)

// setting is one value of one block, ready to be laid over the layers below.
type setting struct {
	key   string
	apply func(*Values)
}

// key reads one value. limit says that it belongs to the site, not only to
// the domain.
type key struct {
	limit bool
	read  func(value any) (func(*Values), error)
}

// keys is every key that a block may have besides match and mx_rollup.
var keys = map[string]key{
	"connection_limit":              {true, count(func(v *Values, n int) { v.Connections = n })},
	"max_connection_rate":           {true, rate(func(v *Values, r Rate) { v.ConnectionRate = r })},
	"max_message_rate":              {true, rate(func(v *Values, r Rate) { v.MessageRate = r })},
	"max_deliveries_per_connection": {true, count(func(v *Values, n int) { v.MessagesPerConnection = n })},
	"max_ready":                     {true, count(func(v *Values, n int) { v.Ready = n })},
	"max_recipients_per_batch":      {false, count(func(v *Values, n int) { v.RecipientsPerTransaction = n })},
	"idle_timeout":                  {false, duration(func(v *Values, d time.Duration) { v.IdleTimeout = d })},
	"enable_tls":                    {false, tlsLevel},
	"retry_schedule":                {false, schedule},
	"max_age":                       {false, duration(func(v *Values, d time.Duration) { v.MessageLifetime = d })},
	"delay_notice_after":            {false, duration(func(v *Values, d time.Duration) { v.DelayNoticeAfter = d })},
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

func count(set func(*Values, int)) func(any) (func(*Values), error) {
	return func(value any) (func(*Values), error) {
		n, ok := value.(int64)
		if !ok || n < 1 || n > maxEvents {
			return nil, fmt.Errorf("%v: want a whole number from 1 to %d", value, maxEvents)
		}
		return func(v *Values) { set(v, int(n)) }, nil
	}
}

func rate(set func(*Values, Rate)) func(any) (func(*Values), error) {
	return func(value any) (func(*Values), error) {
		text, ok := value.(string)
		if !ok {
			return nil, fmt.Errorf("%v: want a rate in quotes, such as \"100/min\"", value)
		}
		r, err := ParseRate(text)
		if err != nil {
			return nil, err
		}
		return func(v *Values) { set(v, r) }, nil
	}
}

func duration(set func(*Values, time.Duration)) func(any) (func(*Values), error) {
	return func(value any) (func(*Values), error) {
		text, ok := value.(string)
		if !ok {
			return nil, fmt.Errorf("%v: want a duration in quotes, such as \"5 days\"", value)
		}
		d, err := retry.ParseDuration(text)
		if err != nil {
			return nil, err
		}
		return func(v *Values) { set(v, d) }, nil
	}
}

func schedule(value any) (func(*Values), error) {
	text, ok := value.(string)
	if !ok {
		return nil, fmt.Errorf("%v: want intervals in quotes, such as \"5m,10m,1h\"", value)
	}
	s, err := retry.Parse(text)
	if err != nil {
		return nil, err
	}
	return func(v *Values) { v.RetrySchedule = s }, nil
}

func tlsLevel(value any) (func(*Values), error) {
	text, _ := value.(string)
	level, ok := tlsLevels[text]
	if !ok {
		return nil, fmt.Errorf("%v: want Disabled, Opportunistic, OpportunisticInsecure, RequiredInsecure, Required, none, may, encrypt or verify", value)
	}
	return func(v *Values) { v.TLS = level }, nil
}
