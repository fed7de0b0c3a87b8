package deployments_test

import (
	"debug/elf"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

// TestImageBuilds does by hand what a container engine does with the build
// stage of the Dockerfile: it copies what COPY copies, without what
// .dockerignore leaves out, and runs the RUN line that compiles, for every
// SERVICE.
func TestImageBuilds(t *testing.T) {
	stage, final, found := strings.Cut(read(t, "deployments", "Dockerfile"), "\nFROM scratch\n")
	if !found {
		t.Fatal("the Dockerfile has no stage FROM scratch")
	}
	src, out := t.TempDir(), t.TempDir()
	ignore := strings.Fields(read(t, ".dockerignore"))
	if ignore[0] != "*" {
		t.Fatalf(".dockerignore begins with %q, want everything left out first", ignore[0])
	}
	var compile string
	for line := range strings.Lines(stage) {
		instruction, rest, _ := strings.Cut(strings.TrimSpace(line), " ")
		switch {
		case instruction == "COPY":
			words := strings.Fields(rest)
			for _, from := range words[:len(words)-1] {
				if !slices.Contains(ignore, "!"+from) {
					t.Errorf("the Dockerfile copies %s, which .dockerignore leaves out", from)
				}
				copyTree(t, from, src)
			}
		case instruction == "RUN" && strings.Contains(rest, "go build"):
			compile = rest
		}
	}
	if !strings.Contains(compile, "/out/service") {
		t.Fatalf("no RUN line compiles to /out/service, but %q", compile)
	}
	for _, service := range append(services(t), "postrider") {
		t.Run(service, func(t *testing.T) {
			binary := filepath.Join(out, service)
			cmd := exec.CommandContext(t.Context(), "sh", "-c", strings.ReplaceAll(compile, "/out/service", binary))
			cmd.Dir = src
			cmd.Env = append(os.Environ(), "SERVICE="+service, "VERSION=v1.2.3")
			if text, err := cmd.CombinedOutput(); err != nil {
				t.Fatalf("%s: %v\n%s", compile, err, text)
			}
			checkStatic(t, binary)
			argument := "-version"
			if service == "postrider" {
				argument = "version"
			}
			text, err := exec.CommandContext(t.Context(), binary, argument).CombinedOutput()
			if err != nil || !strings.Contains(string(text), "v1.2.3") {
				t.Errorf("%s %s: %v, %q, want the version", service, argument, err, text)
			}
		})
	}
	for _, want := range []string{"USER 65532:65532", `ENTRYPOINT ["/service"]`, "ca-certificates.crt"} {
		if !strings.Contains(final, want) {
			t.Errorf("the image has no %s", want)
		}
	}
}

// checkStatic fails if the binary needs a loader: the image has none.
func checkStatic(t *testing.T, binary string) {
	t.Helper()
	file, err := elf.Open(binary)
	if err != nil {
		t.Fatal(err)
	}
	defer file.Close()
	for _, p := range file.Progs {
		if p.Type == elf.PT_INTERP {
			t.Errorf("%s is linked dynamically", binary)
		}
	}
}

// copyTree copies a file or folder of the repository, as the build context
// has it.
func copyTree(t *testing.T, from, to string) {
	t.Helper()
	err := filepath.WalkDir(path(from), func(name string, entry fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		relative, err := filepath.Rel(path(), name)
		if err != nil {
			return err
		}
		switch {
		case entry.IsDir() && entry.Name() == "testdata":
			return filepath.SkipDir
		case entry.IsDir():
			return os.MkdirAll(filepath.Join(to, relative), 0o755)
		case strings.HasSuffix(name, "_test.go"):
			return nil
		}
		text, err := os.ReadFile(name)
		if err != nil {
			return err
		}
		return os.WriteFile(filepath.Join(to, relative), text, 0o644)
	})
	if err != nil {
		t.Fatal(err)
	}
}
