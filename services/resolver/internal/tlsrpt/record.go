// Package tlsrpt reads the TXT records by which domains ask for reports on
// TLS: RFC 8460 §3.
package tlsrpt

import "strings"

// Bounds on a record: what a hostile zone may make a route carry.
const (
	maxURIs = 8
	maxURI  = 500
)

// ParseRecord returns where a domain wants its reports from the TXT records of
// _smtp._tls: URIs of mailto or https, in the order of the record. Records of
// other kinds do not count, and unless exactly one is left the domain wants
// none (RFC 8460 §3).
func ParseRecord(texts []string) (rua []string, ok bool) {
	var records []string
	for _, t := range texts {
		if after, is := strings.CutPrefix(t, "v=TLSRPTv1"); is && strings.HasPrefix(strings.TrimLeft(after, " \t"), ";") {
			records = append(records, after)
		}
	}
	if len(records) != 1 {
		return nil, false
	}
	seen := false
	for _, field := range strings.Split(records[0], ";")[1:] {
		field = strings.Trim(field, " \t")
		if field == "" {
			continue
		}
		key, value, found := strings.Cut(field, "=")
		if !found || key == "" {
			return nil, false
		}
		if key != "rua" || seen {
			continue // an extension, or the second of its kind
		}
		seen = true
		for uri := range strings.SplitSeq(value, ",") {
			if uri = strings.Trim(uri, " \t"); known(uri) && len(rua) < maxURIs {
				rua = append(rua, uri)
			}
		}
	}
	return rua, len(rua) > 0
}

// known reports whether a URI is of a scheme that reports can be sent by.
// Schemes are case-insensitive: RFC 3986 §3.1.
func known(uri string) bool {
	scheme, rest, found := strings.Cut(uri, ":")
	return found && rest != "" && len(uri) <= maxURI &&
		(strings.EqualFold(scheme, "mailto") || strings.EqualFold(scheme, "https")) &&
		!strings.ContainsFunc(uri, func(r rune) bool { return r <= ' ' || r > '~' })
}
