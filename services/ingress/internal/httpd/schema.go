package httpd

import (
	"bytes"
	"encoding/json"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"time"
	"unicode/utf8"

	"github.com/danielgtaylor/huma/v2"
)

// maxName is how much of an unknown member's name an answer shows.
const maxName = 64

// unread is a value of which only the syntax is of interest.
type unread struct{}

func (unread) UnmarshalJSON([]byte) error { return nil }

// check holds a request, JSON without a fault in its syntax, against the
// schema. It returns how many values the request has.
func (d *document) check(text []byte) (values int, err error) {
	r := &reading{doc: d, text: text}
	r.value(d.message)
	return r.values, r.faults.problem("the request does not match its schema")
}

// reading holds a request against its schema, from one octet to the next, and
// builds nothing of it: what it costs goes with the length of the text alone,
// and it ends at maxFaults. Of a list or map that is too long it looks at no
// more than is allowed.
//
// It knows the keywords of JSON Schema that our types use. The pattern of a
// field's name and base64 are looked at where they are used.
type reading struct {
	doc     *document
	text    []byte // one JSON value, without a fault in its syntax
	at      int
	pointer []byte // JSON Pointer to the value that is read: RFC 6901 §6
	values  int    // members and elements that were seen
	faults  faults
}

// fault notes one, and reports whether to read on.
func (r *reading) fault(detail string) bool {
	r.faults.add(Fault{Pointer: "#" + string(r.pointer)}, detail)
	return !r.faults.full()
}

// inside reads something below the value that is read now.
func (r *reading) inside(name string, read func() bool) bool {
	if len(name) > maxName {
		name = strings.ToValidUTF8(name[:maxName], "") + "..."
	}
	above := len(r.pointer)
	r.pointer = append(r.pointer, "/"+strings.NewReplacer("~", "~0", "/", "~1").Replace(name)...)
	goOn := read()
	r.pointer = r.pointer[:above]
	return goOn
}

// space passes white space by.
func (r *reading) space() {
	for r.at < len(r.text) && strings.IndexByte(" \t\r\n", r.text[r.at]) >= 0 {
		r.at++
	}
}

// next passes c by, with the space around it, if it is what comes.
func (r *reading) next(c byte) bool {
	r.space()
	if r.at == len(r.text) || r.text[r.at] != c {
		return false
	}
	r.at++
	r.space()
	return true
}

// literal passes a string by, or a number or a word, and returns it as it is
// written.
func (r *reading) literal() []byte {
	from := r.at
	if r.text[from] != '"' {
		for r.at < len(r.text) && strings.IndexByte(" \t\r\n,]}", r.text[r.at]) < 0 {
			r.at++
		}
		return r.text[from:r.at]
	}
	for r.at++; r.text[r.at] != '"'; r.at++ {
		if r.text[r.at] == '\\' {
			r.at++
		}
	}
	r.at++
	return r.text[from:r.at]
}

// skip passes a value by, whatever it is.
func (r *reading) skip() { r.rest(0) }

// rest passes by what is left of depth lists and maps, or one value.
func (r *reading) rest(depth int) {
	for {
		r.space()
		switch r.text[r.at] {
		case '[', '{':
			depth++
			r.at++
		case ']', '}':
			depth--
			r.at++
		case ',', ':':
			r.at++
			continue
		default:
			r.literal()
		}
		if depth == 0 {
			return
		}
	}
}

// value reads one and reports whether to read on.
func (r *reading) value(s *huma.Schema) bool {
	r.space()
	for s.Ref != "" {
		s = r.doc.registry.SchemaFromRef(s.Ref)
	}
	first := r.text[r.at]
	switch {
	case first == 'n' && s.Nullable:
	case s.Type == huma.TypeObject && first == '{':
		return r.object(s)
	case s.Type == huma.TypeArray && first == '[':
		return r.array(s)
	case s.Type == huma.TypeString && first == '"':
		return r.string(s, r.literal())
	case s.Type == huma.TypeInteger && (first == '-' || first >= '0' && first <= '9'):
		return r.integer(s, r.literal())
	default:
		r.skip()
		return r.fault("want " + map[string]string{huma.TypeObject: "an object", huma.TypeArray: "an array", huma.TypeString: "a string", huma.TypeInteger: "a whole number"}[s.Type])
	}
	r.skip()
	return true
}

func (r *reading) array(s *huma.Schema) bool {
	r.next('[')
	for i := 0; !r.next(']'); i++ {
		r.next(',')
		if r.values++; s.MaxItems != nil && i == *s.MaxItems {
			r.rest(1)
			return r.fault(fmt.Sprintf("more than %d", *s.MaxItems))
		}
		if !r.inside(strconv.Itoa(i), func() bool { return r.value(s.Items) }) {
			return false
		}
	}
	return true
}

func (r *reading) object(s *huma.Schema) bool {
	of, isMap := s.AdditionalProperties.(*huma.Schema)
	seen := map[string]bool{} // of the members in the schema
	r.next('{')
	for i := 0; !r.next('}'); i++ {
		r.next(',')
		if r.values++; s.MaxProperties != nil && i == *s.MaxProperties {
			r.rest(1)
			return r.fault(fmt.Sprintf("more than %d", *s.MaxProperties))
		}
		name := unquote(r.literal())
		r.next(':')
		member, known := s.Properties[name]
		switch {
		case isMap:
			member = of
		case !known:
			r.skip()
		case seen[name]: // RFC 8259 §4: whose value would count is anybody's guess
			r.skip()
			member = nil
		default:
			seen[name] = true
		}
		goOn := r.inside(name, func() bool {
			switch {
			case member != nil:
				return r.value(member)
			case known:
				return r.fault("there is another one of this name")
			}
			return r.fault("there is no such member")
		})
		if !goOn {
			return false
		}
	}
	for _, name := range s.Required {
		if !seen[name] && !r.fault("want a member "+strconv.Quote(name)) {
			return false
		}
	}
	return true
}

// string checks one that is written as raw.
func (r *reading) string(s *huma.Schema, raw []byte) bool {
	tooLong := func() bool { return r.fault(fmt.Sprintf("longer than %d characters", *s.MaxLength)) }
	// A character takes at most 12 octets here: two escapes.
	if s.MaxLength != nil && len(raw) > 12**s.MaxLength+len(`""`) {
		return tooLong()
	}
	if s.MaxLength == nil && s.MinLength == nil && s.Enum == nil && s.Format == "" {
		return true
	}
	text := unquote(raw)
	switch n := utf8.RuneCountInString(text); {
	case s.MaxLength != nil && n > *s.MaxLength:
		return tooLong()
	case s.MinLength != nil && n < *s.MinLength:
		return r.fault(fmt.Sprintf("shorter than %d characters", *s.MinLength))
	case s.Enum != nil && !slices.Contains(s.Enum, any(text)):
		return r.fault(fmt.Sprintf("want one of %v", s.Enum))
	case s.Format == dateTime && new(time.Time).UnmarshalText([]byte(text)) != nil:
		return r.fault("want a time as in RFC 3339")
	}
	return true
}

func (r *reading) integer(s *huma.Schema, raw []byte) bool {
	n, err := strconv.ParseInt(string(raw), 10, 64)
	if err != nil {
		return r.fault("want a whole number")
	}
	if s.Minimum != nil && float64(n) < *s.Minimum || s.Maximum != nil && float64(n) > *s.Maximum {
		return r.fault(fmt.Sprintf("want %v to %v", *s.Minimum, *s.Maximum))
	}
	return true
}

// unquote returns what a string says.
func unquote(raw []byte) (text string) {
	if bytes.IndexByte(raw, '\\') < 0 {
		return string(raw[1 : len(raw)-1])
	}
	// It has passed the syntax check, and is UTF-8.
	_ = json.Unmarshal(raw, &text)
	return text
}

const dateTime = "date-time"
