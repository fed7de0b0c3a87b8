package boot

import (
	"cmp"
	_ "embed" // variables.txt
	"fmt"
	"log/slog"
	"os"
	"reflect"
	"slices"
	"strings"
	"text/tabwriter"
)

// known lists the variables of all services, one a line: all of them may read
// one environment, so a process must know the names that it does not read
// itself. Generated with docs/configuration.md.
//
//go:embed variables.txt
var known string

// warnUnknown warns of variables with our prefix that no service reads: they
// are misspelt, or of another version. It is no error, because Kubernetes
// adds variables such as POSTRIDER_INGRESS_SERVICE_HOST by itself.
func (p *Process) warnUnknown() {
	for _, entry := range os.Environ() {
		name, _, _ := strings.Cut(entry, "=")
		if nearest, unknown := checkName(name); unknown {
			slog.Warn("unknown variable", "name", name, "nearest", nearest)
		}
	}
}

// checkName reports whether a name has our prefix and means nothing to any
// service, and the known name that is most like it.
func checkName(name string) (nearest string, unknown bool) {
	names := strings.Fields(known)
	if !strings.HasPrefix(name, prefix) || len(names) == 0 || kubernetes(name) {
		return "", false
	}
	base := strings.TrimSuffix(name, "_FILE")
	if slices.Contains(names, name) || slices.Contains(names, base) {
		return "", false
	}
	return slices.MinFunc(names, func(a, b string) int {
		return cmp.Compare(distance(a, base), distance(b, base))
	}), true
}

// kubernetes reports the variables of a Service named postrider-*.
func kubernetes(name string) bool {
	return strings.HasSuffix(name, "_SERVICE_HOST") || strings.Contains(name, "_SERVICE_PORT") || strings.Contains(name, "_PORT_")
}

// distance is Levenshtein's.
func distance(a, b string) int {
	row := make([]int, len(b)+1)
	for j := range row {
		row[j] = j
	}
	for i := range len(a) {
		diagonal := row[0]
		row[0] = i + 1
		for j := range len(b) {
			change := diagonal
			if a[i] != b[j] {
				change++
			}
			diagonal = row[j+1]
			row[j+1] = min(change, row[j]+1, row[j+1]+1)
		}
	}
	return row[len(b)]
}

// printTable writes the variables of this process for -h.
func (p *Process) printTable(cfgs []any) error {
	fmt.Fprintf(p.stderr, "%s reads these environment variables; VARIABLE_FILE names a file that holds the value.\n\n", p.name)
	w := tabwriter.NewWriter(p.stderr, 0, 8, 2, ' ', 0)
	seen := map[string]bool{}
	for _, cfg := range cfgs {
		vars, err := variables(cfg)
		if err != nil {
			return err
		}
		for _, v := range vars {
			if !seen[v.Name] {
				seen[v.Name] = true
				fmt.Fprintf(w, "%s\t%s\t%s\t%s\n", v.Name, v.Type, v.shownDefault(), v.Doc)
			}
		}
	}
	return w.Flush()
}

func (v Variable) shownDefault() string {
	switch {
	case v.Required:
		return "required"
	case v.Default == "":
		return "empty"
	}
	return v.Default
}

// Section is one part of the configuration reference.
type Section struct {
	Name    string // of the service
	Configs []any  // pointers to its structs
	All     bool   // it reads what all others read: only what is its own is listed
}

// Reference returns the configuration reference as Markdown, and the text of
// variables.txt. A variable that several services read stands in the first
// section, with the names of all.
func Reference(sections []Section) (markdown, names string, err error) {
	readers := map[string][]string{}
	var b strings.Builder
	sections = append([]Section{{Name: "every process", Configs: []any{&ownConfig{}}}}, sections...)
	for _, s := range sections {
		for _, v := range sectionVariables(s, &err) {
			if !s.All {
				readers[v.Name] = append(readers[v.Name], s.Name)
			}
		}
	}
	if err != nil {
		return "", "", err
	}
	printed := map[string]bool{}
	for _, s := range sections {
		header := fmt.Sprintf("\n## %s\n\n| Variable | Value | Default | Meaning |\n|---|---|---|---|\n", s.Name)
		for _, v := range sectionVariables(s, &err) {
			if printed[v.Name] {
				continue
			}
			printed[v.Name] = true
			b.WriteString(header + v.row(readers[v.Name]))
			header = ""
		}
	}
	all := make([]string, 0, len(printed))
	for name := range printed {
		all = append(all, name)
	}
	slices.Sort(all)
	return b.String(), strings.Join(all, "\n") + "\n", err
}

func sectionVariables(s Section, err *error) []Variable {
	var all []Variable
	for _, cfg := range s.Configs {
		vars, e := variables(cfg)
		if e != nil {
			*err = e
		}
		for _, v := range vars {
			if !slices.ContainsFunc(all, func(o Variable) bool { return o.Name == v.Name }) {
				all = append(all, v)
			}
		}
	}
	return all
}

func (v Variable) row(readers []string) string {
	doc := strings.ReplaceAll(v.Doc, "|", `\|`)
	if doc != "" {
		doc = strings.ToUpper(doc[:1]) + strings.TrimSuffix(doc[1:], ".") + "."
	}
	if v.Secret {
		doc += " Never shown in logs."
	}
	if len(readers) > 1 {
		doc += " Also read by: " + strings.Join(readers[1:], ", ") + "."
	}
	value := "`" + v.Default + "`"
	if v.Default == "" {
		value = v.shownDefault()
	}
	return fmt.Sprintf("| `%s` | %s | %s | %s |\n", v.Name, v.Type, value, strings.TrimSpace(doc))
}

// describe names what a value looks like.
func describe(t reflect.Type) string {
	switch t.String() {
	case "time.Duration":
		return "duration (`90s`, `4h`)"
	case "retry.Duration":
		return "duration (`90s`, `4h`, `5d`)"
	case "slog.Level":
		return "level"
	case "netip.Prefix":
		return "network (`192.0.2.0/24`)"
	case "netip.AddrPort":
		return "address:port"
	}
	switch t.Kind() {
	case reflect.Bool:
		return "`true` or `false`"
	case reflect.Int, reflect.Int8, reflect.Int16, reflect.Int32, reflect.Int64,
		reflect.Uint, reflect.Uint8, reflect.Uint16, reflect.Uint32, reflect.Uint64:
		return "whole number"
	case reflect.Float32, reflect.Float64:
		return "number"
	case reflect.Slice:
		return "list of " + describe(t.Elem()) + ", comma between"
	}
	return "text"
}
