package httpd

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"reflect"
	"runtime"
	"slices"
	"strings"
	"testing"
)

// Requests that are made to cost more than they are. Each is refused, and what
// it makes of its text is small; the work goes with the octets alone.
func TestBombs(t *testing.T) {
	w := start(t, func(c *Config) { c.MaxBodyBytes, c.MemoryBytes = 8<<20, 64<<20 })
	const most = 8<<20 - 200
	many := func(one string) string { return strings.TrimSuffix(strings.Repeat(one+",", most/(len(one)+1)), ",") }
	numbered := func(n int) string {
		var b strings.Builder
		for i := range n {
			fmt.Fprintf(&b, `"%x":0,`, i)
		}
		return strings.TrimSuffix(b.String(), ",")
	}
	each := func(rest string) string {
		recipient := `{"address": "b@example.org"},`
		return `{"from": {"address": "a@example.com"}, "recipients": [` + strings.TrimSuffix(strings.Repeat(recipient, 100), ",") + `], ` + rest + `}`
	}
	for _, c := range []struct {
		name, body string
		status     int
		memory     uint64 // allocated while it was refused, at most, in multiples of the body and beyond 16 MiB
	}{
		{"unknown members", `{` + numbered(600000) + `}`, 400, 4},
		{"unknown members in each of many headers", `{"headers": [` + many(`{"a":1}`) + `]}`, 400, 4},
		{"empty arrays", `{"headers": [` + many(`[]`) + `]}`, 400, 4},
		{"strings", `{"to": [` + many(`""`) + `]}`, 400, 4},
		{"numbers", `{"notify": [` + many(`1`) + `]}`, 400, 4},
		{"nested", strings.Repeat("[", most), 400, 4},
		{"nested in an unknown member", `{"x":` + strings.Repeat("[", 9000) + strings.Repeat("]", 9000) + `}`, 400, 4},
		{"a long name", `{"` + strings.Repeat("a/~", most/3) + `": 1}`, 400, 8},
		{"substitutions without an end", each(`"substitutions": {` + numbered(600000) + `}`), 400, 4},
		{"long value, often", each(`"substitutions": {"a": "` + strings.Repeat("v", 80000) + `"}, "text": "` + strings.Repeat("{{a}}", 17000) + `"`), 413, 8},
		{"long value, often, in a field", each(`"substitutions": {"a": "` + strings.Repeat("v", 80000) + `"}, "headers": [{"name": "X", "value": "` + strings.Repeat("{{a}}", 1999) + `"}]`), 413, 8},
		{"escaped value", each(`"substitutions": {"a": "` + strings.Repeat("<", 80000) + `"}, "html": "` + strings.Repeat("{{a}}", 17000) + `"`), 413, 8},
		{"empty value, very often", each(`"substitutions": {"a": ""}, "text": "` + strings.Repeat("{{a}}", 1600000) + `"`), 413, 8},
		{"no value, very often", each(`"text": "` + strings.Repeat("{{a}}", 1600000) + `"`), 400, 8},
		{"braces", each(`"text": "` + strings.Repeat("{{ ", 2700000) + `"`), 413, 8},
		{"a large file for everybody", each(`"attachments": [{"content": "` + strings.Repeat("AAAA", 1<<20) + `"}]`), 413, 8},
	} {
		t.Run(c.name, func(t *testing.T) {
			if len(c.body) > 8<<20 {
				t.Fatalf("%d octets", len(c.body))
			}
			var before, after runtime.MemStats
			runtime.ReadMemStats(&before)
			a := w.post(t, c.body)
			runtime.ReadMemStats(&after)
			if a.status != c.status || len(a.body) > 16<<10 {
				t.Errorf("got %d, %.200s, want %d", a.status, a.body, c.status)
			}
			if got := after.TotalAlloc - before.TotalAlloc; got > c.memory*uint64(len(c.body))+16<<20 {
				t.Errorf("%d octets allocated for %d", got, len(c.body))
			}
		})
	}
	w.accepted(t, w.post(t, minimal), 1)
}

// A message that grows by its substitutions comes through as long as it fits.
func TestSubstitutionsThatFit(t *testing.T) {
	w := start(t, func(c *Config) { c.MaxBodyBytes, c.MemoryBytes = 8<<20, 64<<20 })
	value := strings.Repeat("v", 900)
	a := w.post(t, `{"from": {"address": "a@example.com"}, "recipients": [{"address": "b@example.org"}], "substitutions": {"a": "`+value+`\n"}, "text": "`+strings.Repeat("{{a}}", 8000)+`"}`)
	if n := strings.Count(string(w.content(t, w.accepted(t, a, 1)[0].ID)), "\r\n"+value); n != 8000 {
		t.Errorf("the value is there %d times", n)
	}
}

// The length that is foretold is that of what is written.
func TestFilledLen(t *testing.T) {
	of := func(name string) (string, bool) {
		value, ok := map[string]string{"a": "<value> & 'more' \"\"", "none": "", "long-name.of_64": strings.Repeat("x", 100)}[name]
		return value, ok
	}
	for _, text := range []string{
		"", "text", "{{a}}", "{{ a\t}}{{a}}", "{{{a}}}", "{{a", "{{}}", "{{ a b }}", "{{long-name.of_64}}", "a {{b}} {{a}}",
		"{{" + strings.Repeat("n", 64) + "}}", "{{" + strings.Repeat("n", 65) + "}}", "{{\n\n\n\n a {{a}}", "x{{none}}y",
	} {
		for name, c := range map[string]struct {
			escape func(string) string
			length func(string) int
		}{"text": {asIs, func(s string) int { return len(s) }}, "html": {escapeHTML, escapedLen}} {
			got, filled := filledLen(text, of, c.length, 1<<20), substitute(text, of, c.escape)
			if got < len(filled) || !strings.Contains(text, "none") && got > max(len(filled), len(text)) {
				t.Errorf("%s: %q becomes %q, and %d octets were foretold", name, text, filled, got)
			}
		}
	}
}

// Every keyword of the published schema is one that requests are held against,
// or one that says nothing of them.
func TestSchemaIsRead(t *testing.T) {
	text, err := os.ReadFile(filepath.Join("..", "..", "..", "..", "docs", "openapi.json"))
	if err != nil {
		t.Fatal(err)
	}
	var doc struct {
		Components struct {
			Schemas map[string]struct {
				Properties map[string]map[string]any
			}
		}
	}
	if err := json.Unmarshal(text, &doc); err != nil {
		t.Fatal(err)
	}
	known := []string{"type", "$ref", "items", "additionalProperties", "maxItems", "maxProperties", "minLength", "maxLength", "minimum", "maximum", "enum", "format", "pattern", "description", "examples"}
	for _, v := range []any{Message{}, Mailbox{}, Recipient{}, HeaderField{}, Attachment{}} {
		name := reflect.TypeOf(v).Name()
		properties := doc.Components.Schemas[name].Properties
		if len(properties) == 0 {
			t.Errorf("no schema %s", name)
		}
		for member, schema := range properties {
			for keyword := range schema {
				if !slices.Contains(known, keyword) {
					t.Errorf("%s.%s: nothing is held against %q", name, member, keyword)
				}
			}
		}
	}
}

func TestSchema(t *testing.T) {
	doc, err := describe()
	if err != nil {
		t.Fatal(err)
	}
	s := &Server{doc: doc, budget: newBudget(1 << 30)}
	boxes := func(n int) string { return strings.TrimSuffix(strings.Repeat(`{"address":"a@b"},`, n), ",") }
	for _, c := range []struct{ name, body, want string }{
		{"all right", ` {"from" : {"address":"a@b","name":"\u00fc\"\\"} ,"to":null, "priority": -9,"text":"]}{[,\"\\","substitutions":{"":"","a":"b"} } `, ""},
		{"as many as are allowed", `{"from":{"address":"a@b"},"to":[` + boxes(1000) + `]}`, ""},
		{"one too many", `{"from":{"address":"a@b"},"to":[` + boxes(1001) + `],"x":1}`, "#/to more than 1000; #/x there is no such member"},
		{"twice", `{"from":{"address":"a@b"},"from":{"address":"c@d"},"text":"","text":""}`, "#/from there is another one of this name; #/text there is another one of this name"},
		{"null", `{"from":null,"text":null}`, "#/from want an object; #/text want a string"},
		{"types", `{"from":[],"to":{},"text":1,"subject":true,"priority":"1","attachments":[[{}],2]}`,
			"#/from want an object; #/to want an array; #/text want a string; #/subject want a string; #/priority want a whole number; #/attachments/0 want an object; #/attachments/1 want an object"},
		{"numbers", `{"from":{"address":"a@b"},"priority":1.5}`, "#/priority want a whole number"},
		{"beyond", `{"from":{"address":"a@b"},"priority":-10}`, "#/priority want -9 to 9"},
		{"length in characters", `{"from":{"address":"a@b","name":"` + strings.Repeat(`\ud83d\ude00`, 255) + `"}}`, ""},
		{"longer", `{"from":{"address":"a@b","name":"` + strings.Repeat(`\ud83d\ude00`, 256) + `"}}`, "#/from/name longer than 255 characters"},
		{"much longer", `{"from":{"address":"a@b","name":"` + strings.Repeat("a", 5000) + `"}}`, "#/from/name longer than 255 characters"},
		{"shorter", `{"from":{"address":"\u0061b"}}`, "#/from/address shorter than 3 characters"},
		{"missing", `{"from":{},"headers":[{}]}`, `#/from want a member "address"; #/headers/0 want a member "name"; #/headers/0 want a member "value"`},
		{"enum", `{"from":{"address":"a@b"},"ret":"half"}`, "#/ret want one of [full hdrs]"},
		{"time", `{"from":{"address":"a@b"},"send_at":"2026-11-22"}`, "#/send_at want a time as in RFC 3339"},
		{"pointers", `{"from":{"address":"a@b"},"a/b~c":[{"x":"]"}],"\n":{}}`, "#/a~1b~0c there is no such member; #/\n there is no such member"},
		{"a map", `{"from":{"address":"a@b"},"substitutions":{"a":1,"b":[{"from":{}}]}}`, "#/substitutions/a want a string; #/substitutions/b want a string"},
	} {
		t.Run(c.name, func(t *testing.T) {
			_, err := s.parse([]byte(c.body), roomy(s))
			var got []string
			var p *Problem
			if errors.As(err, &p) {
				for _, f := range p.Errors {
					got = append(got, f.Pointer+" "+f.Detail)
				}
			}
			if strings.Join(got, "; ") != c.want {
				t.Errorf("got %s, want %s", strings.Join(got, "; "), c.want)
			}
		})
	}
}

// What holds a request against the schema reads each value where the decoder
// does, and to its end.
func FuzzSchema(f *testing.F) {
	f.Add([]byte(`{"from":{"address":"a@b"},"to":[{"address":"c@d"},1,"\"",[[]],{"a":{}}],"x":[1.0e-5,null,true,{"\\":"]"}]}`))
	doc, err := describe()
	if err != nil {
		f.Fatal(err)
	}
	f.Fuzz(func(t *testing.T, text []byte) {
		if !json.Valid(text) {
			return
		}
		r := &reading{doc: doc, text: text}
		if r.value(doc.message) {
			if r.space(); r.at != len(text) {
				t.Errorf("%d of %d octets read: %q", r.at, len(text), text)
			}
		}
		if len(r.faults.all) == 0 {
			if err := json.Unmarshal(text, &Message{}); err != nil {
				t.Errorf("%v: %q", err, text)
			}
		}
	})
}
