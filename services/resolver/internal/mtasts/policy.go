package mtasts

import (
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"time"
	"unicode"
	"unicode/utf8"
)

// Mode is what a policy wants to happen when a host fails it: RFC 8461 §5.
type Mode string

// The modes.
const (
	ModeNone    Mode = "none"
	ModeTesting Mode = "testing"
	ModeEnforce Mode = "enforce"
)

// Policy is the policy of a domain.
type Policy struct {
	Mode   Mode
	MX     []string // patterns in lower case: names, and "*." before a name
	MaxAge time.Duration
	Text   []string // the lines as they were published, for reports
}

// Bounds on a policy: RFC 8461 §3.2 and what a hostile host may make us keep.
const (
	maxPolicy   = 64 << 10
	maxPatterns = 100
	maxMaxAge   = 31557600 // RFC 8461 §3.2: a year
)

// ParseRecord returns the id of a domain's policy from the TXT records of
// _mta-sts: RFC 8461 §3.1. Records of other kinds do not count, and unless
// exactly one is left the domain has no policy.
func ParseRecord(texts []string) (id string, ok bool) {
	var records []string
	for _, t := range texts {
		if strings.HasPrefix(t, "v=STSv1;") {
			records = append(records, t)
		}
	}
	if len(records) != 1 {
		return "", false
	}
	seen := map[string]bool{}
	for _, field := range strings.Split(records[0], ";")[1:] {
		field = strings.Trim(field, " \t")
		if field == "" {
			continue
		}
		key, value, found := strings.Cut(field, "=")
		key, value = strings.TrimRight(key, " \t"), strings.TrimLeft(value, " \t")
		if !found || !fieldName(key) {
			return "", false
		}
		if seen[key] {
			continue // RFC 8461 §3.1: the first one counts
		}
		seen[key] = true
		if key == "id" {
			id = value
		}
	}
	// sts-id = 1*32(ALPHA / DIGIT)
	if id == "" || len(id) > 32 || !onlyBytes(id, alphanumeric) {
		return "", false
	}
	return id, true
}

// Parse reads a policy file: RFC 8461 §3.2. Fields that it does not know are
// passed over; of a field that may come once the first one counts.
func Parse(text string) (Policy, error) {
	if len(text) > maxPolicy {
		return Policy{}, fmt.Errorf("policy of more than %d octets", maxPolicy)
	}
	if !utf8.ValidString(text) {
		return Policy{}, errors.New("policy is not UTF-8")
	}
	var p Policy
	first := map[string]string{}
	for line := range strings.SplitSeq(text, "\n") {
		line = strings.TrimRight(line, " \t\r")
		if line == "" {
			continue
		}
		key, value, found := strings.Cut(line, ":")
		value = strings.Trim(value, " \t")
		if !found || !fieldName(key) || strings.ContainsFunc(value, unicode.IsControl) {
			return Policy{}, fmt.Errorf("line %.60q is not \"name: value\"", line)
		}
		p.Text = append(p.Text, line)
		if key == "mx" {
			pattern, err := parsePattern(value)
			if err != nil {
				return Policy{}, err
			}
			if p.MX = append(p.MX, pattern); len(p.MX) > maxPatterns {
				return Policy{}, fmt.Errorf("more than %d mx patterns", maxPatterns)
			}
			continue
		}
		if _, again := first[key]; !again {
			first[key] = value
		}
	}
	if v := first["version"]; v != "STSv1" {
		return Policy{}, fmt.Errorf("version is %.20q, want STSv1", v)
	}
	switch p.Mode = Mode(first["mode"]); p.Mode {
	case ModeNone, ModeTesting, ModeEnforce:
	default:
		return Policy{}, fmt.Errorf("mode is %.20q, want none, testing or enforce", p.Mode)
	}
	seconds, err := strconv.ParseUint(first["max_age"], 10, 64)
	if err != nil || len(first["max_age"]) > 10 || !onlyBytes(first["max_age"], digit) {
		return Policy{}, fmt.Errorf("max_age is %.20q, want seconds", first["max_age"])
	}
	p.MaxAge = time.Duration(min(seconds, maxMaxAge)) * time.Second
	if p.Mode != ModeNone && len(p.MX) == 0 {
		return Policy{}, fmt.Errorf("mode %s without mx", p.Mode)
	}
	return p, nil
}

func parsePattern(text string) (string, error) {
	pattern := strings.ToLower(strings.TrimSuffix(text, "."))
	name := strings.TrimPrefix(pattern, "*.")
	labels := strings.Split(name, ".")
	bad := len(name) > 253 || slices.ContainsFunc(labels, func(l string) bool {
		return l == "" || len(l) > 63 || !onlyBytes(l, func(c byte) bool { return alphanumeric(c) || c == '-' || c == '_' })
	})
	if bad {
		return "", fmt.Errorf("mx pattern %.80q is not a name", text)
	}
	return pattern, nil
}

// Matches reports whether a mail exchanger is one of the policy's: RFC 8461
// §4.1. A wildcard stands for exactly one label.
func (p Policy) Matches(host string) bool {
	host = strings.ToLower(strings.TrimSuffix(host, "."))
	_, parent, _ := strings.Cut(host, ".")
	return slices.ContainsFunc(p.MX, func(pattern string) bool {
		if below, wild := strings.CutPrefix(pattern, "*."); wild {
			return parent != "" && parent == below
		}
		return pattern == host
	})
}

// fieldName is 1*32 letters, digits, "_", "-" and ".", the first one a letter
// or a digit: RFC 8461 §3.2.
func fieldName(text string) bool {
	return text != "" && len(text) <= 32 && alphanumeric(text[0]) &&
		onlyBytes(text, func(c byte) bool { return alphanumeric(c) || c == '_' || c == '-' || c == '.' })
}

func onlyBytes(text string, is func(byte) bool) bool {
	for i := range len(text) {
		if !is(text[i]) {
			return false
		}
	}
	return text != ""
}

func digit(c byte) bool { return c >= '0' && c <= '9' }

func alphanumeric(c byte) bool { return digit(c) || c >= 'a' && c <= 'z' || c >= 'A' && c <= 'Z' }
