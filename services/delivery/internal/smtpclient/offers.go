package smtpclient

import (
	"slices"
	"strconv"
	"strings"
	"time"
)

// offers are what a host said to EHLO.
type offers struct {
	startTLS, pipelining, eightBit, smtputf8, dsn, size bool
	chunking, binary, deliverBy, priority, requireTLS   bool

	maxSizeBytes int64         // 0: no limit announced
	minBy        time.Duration // the shortest BY of mode R; 0: none announced
	auth         string        // the mechanisms of AUTH, upper case, separated by spaces
}

// parseOffers reads the lines of an EHLO reply behind the first. Keywords
// are in any case, and what is not understood is not offered: RFC 5321
// §4.1.1.1, §2.2.2.
func parseOffers(lines []string) offers {
	var o offers
	flags := map[string]*bool{
		"STARTTLS": &o.startTLS, "PIPELINING": &o.pipelining, "8BITMIME": &o.eightBit, "SMTPUTF8": &o.smtputf8, "DSN": &o.dsn,
		"SIZE": &o.size, "CHUNKING": &o.chunking, "BINARYMIME": &o.binary, "DELIVERBY": &o.deliverBy, "MT-PRIORITY": &o.priority,
		"REQUIRETLS": &o.requireTLS,
	}
	for _, line := range lines {
		word, rest, _ := strings.Cut(strings.TrimSpace(line), " ")
		word, rest = strings.ToUpper(word), strings.TrimSpace(rest)
		if flag := flags[word]; flag != nil {
			*flag = true
		}
		switch word {
		case "SIZE":
			// RFC 1870 §4: no number, or 0, is no limit.
			if n, err := strconv.ParseInt(rest, 10, 64); err == nil && n > 0 {
				o.maxSizeBytes = n
			}
		case "DELIVERBY":
			// RFC 2852 §2: the parameter is the least time; without one there
			// is none.
			if n, err := strconv.ParseInt(rest, 10, 32); err == nil && n > 0 {
				o.minBy = time.Duration(n) * time.Second
			}
		case "AUTH":
			o.auth = strings.ToUpper(rest)
		default:
			// Servers of before RFC 2554 wrote it so for clients of their time.
			if first, found := strings.CutPrefix(word, "AUTH="); found && o.auth == "" {
				o.auth = strings.TrimSpace(first + " " + strings.ToUpper(rest))
			}
		}
	}
	// RFC 3030 §3: without BDAT there is no way to send binary.
	o.binary = o.binary && o.chunking
	return o
}

// mechanism reports whether the host offers a mechanism of AUTH.
func (o offers) mechanism(name string) bool { return slices.Contains(strings.Fields(o.auth), name) }
