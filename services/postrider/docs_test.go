package postrider

import (
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
)

var documents = []string{
	filepath.Join("..", "..", "README.md"),
	filepath.Join("..", "..", "docs", "operations.md"),
	filepath.Join("..", "..", "docs", "access.md"),
	filepath.Join("..", "..", "docs", "sources.md"),
	filepath.Join("..", "..", "docs", "shaping.md"),
	filepath.Join("..", "..", "docs", "tls.md"),
}

func read(t *testing.T, name string) string {
	t.Helper()
	text, err := os.ReadFile(name)
	if err != nil {
		t.Fatal(err)
	}
	return string(text)
}

// words splits a command line as a shell does, as far as the documents need
// it: quotes, and comments behind " #".
func words(line string) []string {
	line, _, _ = strings.Cut(line, " #")
	var all []string
	for _, m := range regexp.MustCompile(`"[^"]*"|'[^']*'|\S+`).FindAllString(line, -1) {
		all = append(all, strings.Trim(m, `"'`))
	}
	return all
}

// TestDocumentedCommandsExist: every postrider command in the shell blocks of
// the documents parses, with its flags and its number of arguments.
func TestDocumentedCommandsExist(t *testing.T) {
	tried := 0
	for _, name := range documents {
		for _, block := range regexp.MustCompile("(?s)```sh\n(.*?)```").FindAllStringSubmatch(read(t, name), -1) {
			for _, line := range strings.Split(block[1], "\n") {
				w := words(line)
				if len(w) < 2 || w[0] != "postrider" && w[0] != "bin/postrider" || strings.Contains(line, "[") {
					continue // another program, or a synopsis
				}
				tried++
				cmd, args, err := newCommand().Find(w[1:])
				if err != nil {
					t.Errorf("%s: %s: %v", name, line, err)
					continue
				}
				if err := cmd.ParseFlags(args); err != nil {
					t.Errorf("%s: %s: %v", name, line, err)
					continue
				}
				if err := cmd.ValidateArgs(cmd.Flags().Args()); err != nil {
					t.Errorf("%s: %s: %v", name, line, err)
				}
			}
		}
	}
	if tried < 15 {
		t.Errorf("%d commands found in the documents, want 15 or more: the search does not find them", tried)
	}
}

// instrument finds the names of metrics where they are made.
var instrument = regexp.MustCompile(`(?:(?:Counter|Histogram|Gauge)\(|counter\()"(postrider\.[a-z._]+)"`)

// TestEveryMetricIsDocumented compares the code with docs/operations.md, in
// both directions.
func TestEveryMetricIsDocumented(t *testing.T) {
	text := read(t, documents[1])
	made := map[string]bool{}
	for _, root := range []string{filepath.Join("..", "..", "pkg"), filepath.Join("..", "..", "services")} {
		err := filepath.WalkDir(root, func(path string, d fs.DirEntry, err error) error {
			if err != nil || d.IsDir() || !strings.HasSuffix(path, ".go") || strings.HasSuffix(path, "_test.go") {
				return err
			}
			for _, m := range instrument.FindAllStringSubmatch(read(t, path), -1) {
				made[strings.ReplaceAll(m[1], ".", "_")] = true
			}
			return nil
		})
		if err != nil {
			t.Fatal(err)
		}
	}
	if len(made) < 20 {
		t.Errorf("%d metrics found in the code, want 20 or more: the search does not find them", len(made))
	}
	suffix := regexp.MustCompile(`(_bytes|_seconds|_total)+$`)
	documented := map[string]bool{}
	for _, m := range regexp.MustCompile("`(postrider_[a-z_]+)[`{]").FindAllStringSubmatch(text, -1) {
		documented[suffix.ReplaceAllString(m[1], "")] = true
	}
	for name := range made {
		if !documented[suffix.ReplaceAllString(name, "")] {
			t.Errorf("metric %s is not in docs/operations.md", name)
		}
	}
	for name := range documented {
		if !made[name] && !strings.Contains(read(t, filepath.Join("..", "..", "migrations", "0003_roles.sql")), "'"+name+"'") && name != "postrider_submit" {
			t.Errorf("docs/operations.md names %s, which is no metric and no role", name)
		}
	}
}

// TestDocumentsNameRealVariables: what a document tells to set is read by some
// process.
func TestDocumentsNameRealVariables(t *testing.T) {
	known := strings.Fields(read(t, filepath.Join("..", "..", "pkg", "boot", "variables.txt")))
	files, err := filepath.Glob(filepath.Join("..", "..", "docs", "*.md"))
	if err != nil {
		t.Fatal(err)
	}
	for _, name := range append(files, documents[0]) {
		for _, v := range regexp.MustCompile(`POSTRIDER_[A-Z0-9_]+`).FindAllString(read(t, name), -1) {
			if strings.HasSuffix(v, "_") {
				continue // the beginning of several
			}
			if base := strings.TrimSuffix(v, "_FILE"); !slices.Contains(known, v) && !slices.Contains(known, base) && !testVariable.MatchString(v) {
				t.Errorf("%s names %s, which nothing reads", name, v)
			}
		}
	}
}

// testVariable are variables of the tests, not of the product.
var testVariable = regexp.MustCompile(`^POSTRIDER_(TEST|CHAOS|RATES|ISOLATION|LOAD|TENANTS)_`)
