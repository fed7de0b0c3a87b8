// Package deployments_test checks what is in deployments/ as far as that is
// possible without a container engine: every file is read by the library of
// the tool that reads it in production, every variable is one that a service
// knows, and the image's build runs.
package deployments_test

import (
	"crypto/x509"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/postrider/postrider/tests/world"
)

func path(parts ...string) string {
	return filepath.Join(append([]string{world.Root()}, parts...)...)
}

func read(t *testing.T, parts ...string) string {
	t.Helper()
	text, err := os.ReadFile(path(parts...))
	if err != nil {
		t.Fatal(err)
	}
	return string(text)
}

// services lists the services that run in production: all but the command
// line.
func services(t *testing.T) []string {
	t.Helper()
	entries, err := os.ReadDir(path("services"))
	if err != nil {
		t.Fatal(err)
	}
	var names []string
	for _, e := range entries {
		if e.Name() != "postrider" {
			names = append(names, e.Name())
		}
	}
	if len(names) < 5 {
		t.Fatalf("services %v: fewer than there should be", names)
	}
	return names
}

// listeners are the doors of ingress that every form opens.
var listeners = []string{"POSTRIDER_SMTP_LISTEN", "POSTRIDER_SUBMISSION_LISTEN", "POSTRIDER_SUBMISSIONS_LISTEN", "POSTRIDER_HTTPS_LISTEN"}

// others are variables that are not ours: of the Go runtime and OpenTelemetry.
var others = regexp.MustCompile(`^(GOMAXPROCS|GOMEMLIMIT|OTEL_[A-Z_]+)$`)

// known checks that the variable is in docs/configuration.md.
func known(t *testing.T, where, variable string) {
	t.Helper()
	reference := read(t, "docs", "configuration.md")
	name := variable
	if strings.HasPrefix(variable, "POSTRIDER_") {
		name = strings.TrimSuffix(variable, "_FILE")
	} else if !others.MatchString(variable) {
		t.Errorf("%s: %s is neither ours nor of the Go runtime or OpenTelemetry", where, variable)
	}
	if !strings.Contains(reference, "`"+name+"`") {
		t.Errorf("%s: %s is not in docs/configuration.md", where, variable)
	}
}

// envFile returns the variables of a file with lines NAME=value.
func envFile(t *testing.T, parts ...string) map[string]string {
	t.Helper()
	values := map[string]string{}
	for line := range strings.Lines(read(t, parts...)) {
		line = strings.TrimSpace(line)
		if line == "" || strings.HasPrefix(line, "#") {
			continue
		}
		name, value, found := strings.Cut(line, "=")
		if !found {
			t.Errorf("%s: %q is no variable", filepath.Join(parts...), line)
		}
		values[name] = value
	}
	return values
}

func TestSystemd(t *testing.T) {
	for _, name := range []string{"postrider@.service", "postrider-delivery@.service"} {
		checkUnit(t, name)
	}
	told := read(t, "deployments", "systemd", "postrider@.service")
	for _, service := range services(t) {
		if !strings.Contains(told, service) {
			t.Errorf("postrider@.service does not tell how to enable %s", service)
		}
	}
	for _, file := range append(services(t), "postrider") {
		for variable := range envFile(t, "deployments", "systemd", "env", file+".env") {
			known(t, file+".env", variable)
		}
	}
}

func checkUnit(t *testing.T, name string) {
	t.Helper()
	unit := read(t, "deployments", "systemd", name)
	assignment := regexp.MustCompile(`^[A-Z][A-Za-z]+=.*$`)
	var sections []string
	for line := range strings.Lines(unit) {
		line = strings.TrimSpace(line)
		switch {
		case line == "" || strings.HasPrefix(line, "#"):
		case strings.HasPrefix(line, "["):
			sections = append(sections, line)
		case !assignment.MatchString(line):
			t.Errorf("%s: %q is no assignment", name, line)
		}
	}
	if want := []string{"[Unit]", "[Service]", "[Install]"}; !slices.Equal(sections, want) {
		t.Errorf("%s: sections %v, want %v", name, sections, want)
	}
}

// pool returns the authorities of a PEM file.
func pool(t *testing.T, file string) *x509.CertPool {
	t.Helper()
	text, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	p := x509.NewCertPool()
	if !p.AppendCertsFromPEM(text) {
		t.Fatalf("no certificate in %s", file)
	}
	return p
}
