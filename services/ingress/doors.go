package ingress

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"strconv"
	"strings"
	"time"

	"github.com/postrider/postrider/services/ingress/internal/smtpd"
)

// listener is an address of its own kind: docs/listeners.md.
type listener struct {
	address string
	words   []word
}

// word is one name=value of a listener.
type word struct{ name, value string }

// listeners is POSTRIDER_SMTP_LISTENERS.
type listeners struct{ all []listener }

// Decode reads listeners: one on each line, or a semicolon between, each an
// address and words; # begins a comment.
func (l *listeners) Decode(text string) error {
	var all []listener
	for line := range strings.Lines(text) {
		line, _, _ = strings.Cut(line, "#")
		for one := range strings.SplitSeq(line, ";") {
			fields := strings.Fields(one)
			if len(fields) == 0 {
				continue
			}
			next := listener{address: fields[0]}
			if _, _, err := net.SplitHostPort(next.address); err != nil {
				return err
			}
			for _, field := range fields[1:] {
				name, value, ok := strings.Cut(field, "=")
				if !ok {
					return fmt.Errorf("%s: %q is no word=value", next.address, field)
				}
				next.words = append(next.words, word{strings.ToLower(name), value})
			}
			if _, err := next.door(smtpd.Config{}); err != nil {
				return err
			}
			all = append(all, next)
		}
	}
	l.all = all
	return nil
}

// door is the listener with what the others have where it says nothing.
func (l *listener) door(common smtpd.Config) (smtpd.Door, error) {
	door := smtpd.Door{Config: &common}
	given := map[string]bool{}
	for _, w := range l.words {
		if given[w.name] {
			return door, fmt.Errorf("%s: %s is there twice", l.address, w.name)
		}
		given[w.name] = true
		if err := set(&door, w); err != nil {
			return door, fmt.Errorf("%s: %s=%s: %w", l.address, w.name, w.value, err)
		}
	}
	if door.Submission && door.NoAuth {
		return door, fmt.Errorf("%s: auth=required and auth=no", l.address)
	}
	return door, nil
}

// validate checks what a listener makes of the common settings.
func (l *listener) validate(common smtpd.Config) error {
	door, err := l.door(common)
	if err != nil {
		return err
	}
	if err := door.Config.Validate(); err != nil && common.Validate() == nil {
		return fmt.Errorf("listener %s: %w", l.address, err)
	}
	return nil
}

// set does what one word says.
func set(door *smtpd.Door, w word) error {
	switch w.name {
	case "tls":
		return choose(w.value, map[string]func(){
			"no": func() { door.NoTLS = true }, "offered": func() {},
			"required": func() { door.NeedTLS = true }, "implicit": func() { door.ImplicitTLS = true },
		})
	case "auth":
		return choose(w.value, map[string]func(){
			"no": func() { door.NoAuth = true }, "offered": func() {}, "required": func() { door.Submission = true },
		})
	}
	to, ok := settings(door.Config)[w.name]
	if !ok {
		return errors.New("there is no such word")
	}
	var err error
	switch to := to.(type) {
	case *bool:
		err = choose(w.value, map[string]func(){"yes": func() { *to = true }, "no": func() { *to = false }})
	case *int:
		*to, err = strconv.Atoi(w.value)
	case *int64:
		*to, err = strconv.ParseInt(w.value, 10, 64)
	case *time.Duration:
		*to, err = time.ParseDuration(w.value)
	case *[]string:
		*to = list(w.value)
	case *[]netip.Prefix:
		*to = nil
		for _, text := range list(w.value) {
			network, wrong := netip.ParsePrefix(text)
			err = errors.Join(err, wrong)
			*to = append(*to, network)
		}
	}
	return err
}

// settings are the words that stand for a setting of all listeners.
func settings(c *smtpd.Config) map[string]any {
	return map[string]any{
		"networks":                    &c.RelayNetworks,
		"domains":                     &c.RelayDomains,
		"proxy-networks":              &c.ProxyNetworks,
		"xclient-networks":            &c.XClientNetworks,
		"plaintext-auth":              &c.PlaintextAuth,
		"scram":                       &c.AuthSCRAM,
		"hide-clients":                &c.HideClients,
		"binarymime":                  &c.BinaryMIME,
		"keep-bcc":                    &c.KeepBcc,
		"add-missing":                 &c.AddMissing,
		"normalize-newlines":          &c.NormalizeNewlines,
		"max-message-bytes":           &c.MaxMessageBytes,
		"max-recipients":              &c.MaxRecipients,
		"max-messages":                &c.MaxMessages,
		"max-session-recipients":      &c.MaxSessionRcpts,
		"max-line":                    &c.MaxLine,
		"mend-lines":                  &c.MendLines,
		"max-errors":                  &c.MaxErrors,
		"max-connections":             &c.MaxConnections,
		"max-connections-per-ip":      &c.MaxConnectionsPerIP,
		"max-connections-per-network": &c.MaxConnectionsPerNetwork,
		"connection-rate":             &c.ConnectionRate,
		"message-rate":                &c.MessageRate,
		"idle-timeout":                &c.IdleTimeout,
		"min-data-rate":               &c.MinDataRate,
	}
}

// list reads values with commas between; none is an empty list.
func list(text string) []string {
	if text == "" || text == "none" {
		return nil
	}
	return strings.Split(text, ",")
}

func choose(value string, of map[string]func()) error {
	do, ok := of[value]
	if !ok {
		return errors.New("no such value")
	}
	do()
	return nil
}
