package postrider_test

import (
	"bufio"
	"encoding/json"
	"errors"
	"go/ast"
	"go/parser"
	"go/token"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
)

// The rules of the house. A rule that stands in the way is changed here, with
// its why, in a commit of its own; never worked around.

const module = "github.com/postrider/postrider/"

// layers says which packages of ours a package may import outside its tests.
// The first rule whose pattern matches counts; $1 is what the pattern's group
// matched. Imports go down this list, never sideways.
var layers = []struct {
	packages string
	may      []string
	why      string
}{
	{`pkg/mail`, nil, "the words depend on nothing, so that everyone can use them"},
	{`pkg/(smtp|retry|telemetry|auth|dkim)`, []string{`pkg/mail`}, "each is one subject on top of the words"},
	{`proto/.*`, nil, "contracts of the bus know no Go type of ours"},
	{`migrations`, nil, "migrations are embedded SQL and nothing else"},
	{`pkg/devpg`, nil, "starting a Postgres has nothing to do with mail"},
	{`pkg/shaping`, []string{`pkg/mail`, `pkg/retry`}, "limits are configuration: no I/O, no store, no bus"},
	{`pkg/inside`, nil, "networks are arithmetic"},
	{`pkg/roots`, nil, "certificate authorities are files, for whoever verifies"},
	{`pkg/store`, []string{`pkg/mail`, `migrations`}, "SQL lives here and only here; it knows no dialog, bus or DNS"},
	{`pkg/bus`, []string{`pkg/mail`, `proto/.*`}, "wire types stop here; it knows no Postgres and no meaning of a failure"},
	{`pkg/boot`, []string{`pkg/telemetry`}, "a process starts and stops without knowing what it serves"},
	{`pkg/[a-z]+test`, []string{`pkg/[a-z]+`}, "fakes and fixtures may use what they fake"},
	{`services/postrider`, []string{`pkg/[a-z]+`, `services/[a-z]+`, `services/postrider/internal/.*`}, "the one place where services meet"},
	{`services/([a-z]+)`, []string{`pkg/[a-z]+`, `services/$1/internal/.*`}, "services meet on the bus and in Postgres, not in imports"},
	{`services/([a-z]+)/internal/.*`, []string{`pkg/[a-z]+`, `services/$1/internal/.*`}, "the inside of a service does not know its outside"},
	{`services/([a-z]+)/cmd/.*`, []string{`pkg/[a-z]+`, `services/$1`}, "a main wires its own service and has no logic"},
	{`tests/.*`, []string{`pkg/[a-z]+`, `proto/.*`, `tests/.*`}, "system tests are black boxes: they run binaries, they import no service"},
}

// vendors says which packages may import a library outside their tests. The
// longest matching prefix counts. What is not listed is free.
var vendors = []struct {
	library string
	owners  []string
	why     string
}{
	{"github.com/jackc/pgx", []string{`pkg/store`, `pkg/devpg`, `pkg/storetest`}, "all SQL is in pkg/store"},
	{"github.com/pressly/goose", []string{`pkg/store`}, "migrations are applied by store.Migrate, under its lock"},
	{"github.com/nats-io/nats.go", []string{`pkg/bus`}, "handlers get words of package mail, never a jetstream.Msg"},
	{"github.com/nats-io/nats-server", []string{`pkg/bustest`, `services/postrider`}, "services must not carry a server (docs/decisions/0003)"},
	{"google.golang.org/protobuf", []string{`proto/.*`, `pkg/bus`}, "wire types stop in pkg/bus"},
	{"github.com/miekg/dns", []string{`services/resolver/internal/mx`, `pkg/dnstest`}, "version 1 will be archived: one package to change"},
	{"go.opentelemetry.io/otel/sdk", []string{`pkg/telemetry`}, "everyone else uses the API"},
	{"go.opentelemetry.io/otel/exporters", []string{`pkg/telemetry`}, "everyone else uses the API"},
	{"go.opentelemetry.io/otel", []string{`pkg/telemetry`, `pkg/store`, `pkg/bus`, `pkg/boot`, `services/.*`}, "words, grammar and policy are pure"},
	{"github.com/prometheus/client_golang", []string{`pkg/telemetry`}, "metrics go through the OpenTelemetry API"},
	{"github.com/kelseyhightower/envconfig", []string{`pkg/boot`}, "it stops at the first error; pkg/boot reports all"},
	{"github.com/spf13/cobra", []string{`services/postrider`}, "there is one command line"},
	{"github.com/xdg-go", []string{`pkg/auth`}, "secrets are made and verified in one place"},
	{"golang.org/x/crypto/argon2", []string{`pkg/auth`}, "secrets are made and verified in one place"},
	{"github.com/emersion/go-msgauth", []string{`pkg/dkim`}, "what is signed, and how, is decided once"},
	{"github.com/danielgtaylor/huma", []string{`services/ingress/internal/httpd`}, "it describes the one interface of HTTP clients"},
	{"github.com/dlclark/regexp2", []string{`pkg/shaping`}, "it backtracks: what hosts say meets it under one bound; RE2 is for all else"},
	{"github.com/BurntSushi/toml", []string{`pkg/shaping`}, "one file format, one reader"},
}

// badNames are names that say nothing: the package is about something, and
// that is its name.
var badNames = []string{"util", "utils", "common", "helper", "helpers", "types", "models", "misc", "base", "shared", "lib", "core"}

const (
	maxFileLines = 600 // aim at 400
	maxMainLines = 60
)

// goPackage is what go list says of a package.
type goPackage struct {
	ImportPath, Dir, Name              string
	GoFiles, TestGoFiles, XTestGoFiles []string
	Imports, TestImports, XTestImports []string
	Incomplete                         bool
	Error                              *struct{ Err string }
}

// path is the import path below the module.
func (p goPackage) path() string { return strings.TrimPrefix(p.ImportPath, module) }

func (p goPackage) testFiles() []string { return slices.Concat(p.TestGoFiles, p.XTestGoFiles) }

var list = sync.OnceValues(func() ([]byte, error) {
	cmd := exec.Command("go", "list", "-e", "-json", "./...", "./tests/...")
	cmd.Stderr = os.Stderr
	return cmd.Output()
})

// packages lists the packages of the product and of the tests module.
func packages(t *testing.T) []goPackage {
	t.Helper()
	out, err := list()
	if err != nil {
		t.Fatalf("go list: %v", err)
	}
	var all []goPackage
	decoder := json.NewDecoder(strings.NewReader(string(out)))
	for {
		var p goPackage
		switch err := decoder.Decode(&p); {
		case errors.Is(err, io.EOF):
			return all
		case err != nil:
			t.Fatal(err)
		case p.Error != nil:
			t.Fatalf("%s: %s", p.ImportPath, p.Error.Err)
		case p.path()+"/" != module:
			all = append(all, p)
		}
	}
}

func matches(pattern, path string) bool {
	return regexp.MustCompile(`^(?:` + pattern + `)$`).MatchString(path)
}

func TestLayers(t *testing.T) {
	for _, p := range packages(t) {
		known := false
		for _, layer := range layers {
			pattern := regexp.MustCompile(`^(?:` + layer.packages + `)$`)
			if !pattern.MatchString(p.path()) {
				continue
			}
			known = true
			for _, imported := range p.Imports {
				ours, found := strings.CutPrefix(imported, module)
				if found && !slices.ContainsFunc(layer.may, func(may string) bool {
					return matches(pattern.ReplaceAllString(p.path(), may), ours)
				}) {
					t.Errorf("%s imports %s, but may import only %q of ours: %s", p.path(), ours, layer.may, layer.why)
				}
			}
			break
		}
		if !known {
			t.Errorf("%s has no rule in the table layers: say there where it belongs", p.path())
		}
	}
}

func TestVendorsHaveOneOwner(t *testing.T) {
	for _, p := range packages(t) {
		if matches(`tests/.*`, p.path()) {
			continue // a module of its own
		}
		for _, imported := range p.Imports {
			longest := -1
			for i, v := range vendors {
				if strings.HasPrefix(imported+"/", v.library+"/") && (longest < 0 || len(v.library) > len(vendors[longest].library)) {
					longest = i
				}
			}
			if longest < 0 {
				continue
			}
			v := vendors[longest]
			if !slices.ContainsFunc(v.owners, func(owner string) bool { return matches(owner, p.path()) }) {
				t.Errorf("%s imports %s, which belongs to %q: %s", p.path(), imported, v.owners, v.why)
			}
		}
	}
}

func TestFakesStayInTests(t *testing.T) {
	fake := `pkg/[a-z]+test`
	for _, p := range packages(t) {
		if matches(fake, p.path()) || matches(`tests/.*`, p.path()) {
			continue
		}
		for _, imported := range p.Imports {
			if matches(fake, strings.TrimPrefix(imported, module)) {
				t.Errorf("%s imports %s outside its tests: fakes must not reach a service", p.path(), imported)
			}
		}
	}
}

func TestPackageNames(t *testing.T) {
	for _, p := range packages(t) {
		if slices.Contains(badNames, filepath.Base(p.path())) {
			t.Errorf("%s: the name says nothing; name the package for what it is about", p.path())
		}
	}
}

// parsed is a file of ours.
type parsed struct {
	path      string // below the root
	lines     int
	test      bool // _test.go, or in the tests module, or in a package of fakes
	generated bool
	set       *token.FileSet
	file      *ast.File
}

// at says where a node is.
func (f parsed) at(n ast.Node) string {
	return f.path + ":" + strconv.Itoa(f.set.Position(n.Pos()).Line)
}

// parse reads all files of the packages, generated ones included.
func parse(t *testing.T, all []goPackage) map[string][]parsed {
	t.Helper()
	root, err := os.Getwd()
	if err != nil {
		t.Fatal(err)
	}
	files := map[string][]parsed{}
	for _, p := range all {
		for _, name := range slices.Concat(p.GoFiles, p.testFiles()) {
			full := filepath.Join(p.Dir, name)
			set := token.NewFileSet()
			file, err := parser.ParseFile(set, full, nil, parser.ParseComments)
			if err != nil {
				t.Fatal(err)
			}
			path, err := filepath.Rel(root, full)
			if err != nil {
				t.Fatal(err)
			}
			files[p.path()] = append(files[p.path()], parsed{
				path:      path,
				lines:     set.File(file.Pos()).LineCount(),
				test:      strings.HasSuffix(name, "_test.go") || matches(`tests/.*|pkg/[a-z]+test`, p.path()),
				generated: ast.IsGenerated(file),
				set:       set,
				file:      file,
			})
		}
	}
	return files
}

func TestEveryPackageHasOneDoc(t *testing.T) {
	for path, files := range parse(t, packages(t)) {
		var documented []string
		code := false
		for _, f := range files {
			if strings.HasSuffix(f.path, "_test.go") {
				continue
			}
			code = true
			if f.file.Doc != nil {
				documented = append(documented, f.path)
				if text := f.file.Doc.Text(); !strings.HasPrefix(text, "Package "+f.file.Name.Name) && f.file.Name.Name != "main" {
					t.Errorf("%s: the package doc begins with %.30q, want \"Package %s\"", f.path, text, f.file.Name.Name)
				}
			}
		}
		if code && len(documented) != 1 {
			t.Errorf("%s: package doc in %d files %v, want 1", path, len(documented), documented)
		}
	}
}

func TestFilesAreShort(t *testing.T) {
	for _, files := range parse(t, packages(t)) {
		for _, f := range files {
			limit := maxFileLines
			if filepath.Base(f.path) == "main.go" && strings.HasPrefix(f.path, "services/") {
				limit = maxMainLines
			}
			if f.lines > limit && !f.generated && !strings.HasSuffix(f.path, "_test.go") {
				t.Errorf("%s has %d lines, at most %d: it is about more than one thing", f.path, f.lines, limit)
			}
		}
	}
}

func TestTestsDoNotSleep(t *testing.T) {
	for _, files := range parse(t, packages(t)) {
		for _, f := range files {
			ast.Inspect(f.file, func(n ast.Node) bool {
				if call, is := n.(*ast.SelectorExpr); is && f.test && call.Sel.Name == "Sleep" {
					if x, is := call.X.(*ast.Ident); is && x.Name == "time" {
						t.Errorf("%s: time.Sleep in a test: wait for an event or a condition with a deadline", f.at(n))
					}
				}
				return true
			})
		}
	}
}

// Goroutines that nobody waits for outlive what they work for. Those of
// pkg/boot live as long as the process, those of pkg/devpg as long as the
// Postgres process that they watch.
func TestGoroutinesAreWaitedFor(t *testing.T) {
	for path, files := range parse(t, packages(t)) {
		if matches(`pkg/(boot|devpg)`, path) {
			continue
		}
		for _, f := range files {
			ast.Inspect(f.file, func(n ast.Node) bool {
				if _, is := n.(*ast.GoStmt); is && !f.test {
					t.Errorf("%s: a bare go statement: use an errgroup that Run waits for", f.at(n))
				}
				return true
			})
		}
	}
}

func TestNothingIsLeftForLater(t *testing.T) {
	later := regexp.MustCompile(`\b(TO` + `DO|FIX` + `ME|XX` + `X)\b`)
	for _, files := range parse(t, packages(t)) {
		for _, f := range files {
			for _, group := range f.file.Comments {
				if word := later.FindString(group.Text()); word != "" && !f.generated {
					t.Errorf("%s: %s: do it, or write an issue", f.at(group), word)
				}
			}
		}
	}
}

// Every method of Store talks to Postgres, so only a test on a real one shows
// that its SQL is right.
func TestStoreMethodsHaveTests(t *testing.T) {
	var methods []string
	called := map[string]bool{}
	for _, f := range parse(t, packages(t))["pkg/store"] {
		ast.Inspect(f.file, func(n ast.Node) bool {
			switch n := n.(type) {
			case *ast.FuncDecl:
				if !f.test && n.Recv != nil && n.Name.IsExported() && receiver(n) == "Store" {
					methods = append(methods, n.Name.Name)
				}
			case *ast.SelectorExpr:
				called[n.Sel.Name] = called[n.Sel.Name] || f.test
			}
			return true
		})
	}
	if len(methods) == 0 {
		t.Fatal("no method of store.Store found: this test looks in the wrong place")
	}
	for _, m := range methods {
		if !called[m] {
			t.Errorf("store.Store.%s is called in no test of pkg/store", m)
		}
	}
}

// A document that says what we do names the test that shows it, as
// "TestX in services/y", or "TestX/z in services/y" for testdata/z.smtp there.
func TestDocumentsNameTests(t *testing.T) {
	tests := map[string]bool{}
	for path, files := range parse(t, packages(t)) {
		for _, f := range files {
			for _, declaration := range f.file.Decls {
				if function, is := declaration.(*ast.FuncDecl); is && f.test && function.Recv == nil {
					tests[function.Name.Name+" in "+path] = true
				}
			}
		}
	}
	documents, err := filepath.Glob("docs/*.md")
	if err != nil {
		t.Fatal(err)
	}
	found := 0
	for _, document := range documents {
		text, err := os.ReadFile(document)
		if err != nil {
			t.Fatal(err)
		}
		for _, name := range regexp.MustCompile(`\b(Test\w+)(?:/([\w.-]+))? in (\w+(?:/\w+)+)`).FindAllStringSubmatch(string(text), -1) {
			found++
			if !tests[name[1]+" in "+name[3]] {
				t.Errorf("%s: there is no %s in %s", document, name[1], name[3])
			}
			if name[2] == "" {
				continue
			}
			if _, err := os.Stat(filepath.Join(filepath.FromSlash(name[3]), "testdata", name[2]+".smtp")); err != nil {
				t.Errorf("%s: %s: %v", document, name[0], err)
			}
		}
	}
	if found == 0 {
		t.Error("no document names a test: this test looks for them in the wrong way")
	}
}

func receiver(f *ast.FuncDecl) string {
	expr := f.Recv.List[0].Type
	if star, is := expr.(*ast.StarExpr); is {
		expr = star.X
	}
	if name, is := expr.(*ast.Ident); is {
		return name.Name
	}
	return ""
}

// What postrider dev does not run, nobody tries on a laptop.
func TestEveryServiceIsComposed(t *testing.T) {
	all := map[string]goPackage{}
	for _, p := range packages(t) {
		all[p.path()] = p
	}
	folders, err := os.ReadDir("services")
	if err != nil {
		t.Fatal(err)
	}
	makefile := binaries(t)
	for _, folder := range folders {
		name := folder.Name()
		service := "services/" + name
		if _, is := all[service]; !is {
			t.Errorf("%s has no package: a service is an importable Run", service)
		}
		if main := all[service+"/cmd/"+name]; main.Name != "main" {
			t.Errorf("%s/cmd/%s is no command: each service is its own binary", service, name)
		}
		if !slices.Contains(makefile, name) {
			t.Errorf("the Makefile does not build %s (BINARIES)", name)
		}
		if name != "postrider" && !slices.Contains(all["services/postrider"].Imports, module+service) {
			t.Errorf("services/postrider does not run %s", service)
		}
	}
	if len(makefile) != len(folders) {
		t.Errorf("the Makefile builds %v, services/ has %d folders", makefile, len(folders))
	}
}

// binaries returns BINARIES of the Makefile.
func binaries(t *testing.T) []string {
	t.Helper()
	file, err := os.Open("Makefile")
	if err != nil {
		t.Fatal(err)
	}
	defer file.Close()
	lines := bufio.NewScanner(file)
	for lines.Scan() {
		if rest, found := strings.CutPrefix(lines.Text(), "BINARIES :="); found {
			return strings.Fields(rest)
		}
	}
	t.Fatal("the Makefile has no BINARIES")
	return nil
}
