package world

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"sync"
)

// Root returns the directory of the repository.
func Root() string {
	_, file, _, _ := runtime.Caller(0)
	return filepath.Join(filepath.Dir(file), "..", "..")
}

// build is what Build made, once for this process.
var build struct {
	once sync.Once
	dir  string
	err  error
}

// Build compiles all binaries of postrider, and nats-server, once for this
// process, and returns their directory. With POSTRIDER_TEST_RACE set they
// have the race detector in them. RemoveBuild takes it away again.
// POSTRIDER_TEST_BIN names a directory that has them all already.
func Build(ctx context.Context) (string, error) {
	if dir := os.Getenv("POSTRIDER_TEST_BIN"); dir != "" {
		return filepath.Abs(dir)
	}
	build.once.Do(func() { build.dir, build.err = compile(ctx) })
	return build.dir, build.err
}

// RemoveBuild removes the directory of Build.
func RemoveBuild() error {
	if build.dir == "" {
		return nil
	}
	return os.RemoveAll(build.dir)
}

func compile(ctx context.Context) (string, error) {
	dir, err := os.MkdirTemp("", "postrider-bin-")
	if err != nil {
		return "", err
	}
	if err := os.Chmod(dir, 0o755); err != nil { // some tests run them as another user
		return dir, err
	}
	args := []string{"build", "-o", dir + "/"}
	if os.Getenv("POSTRIDER_TEST_RACE") != "" {
		args = append(args, "-race")
	}
	commands, err := filepath.Glob(filepath.Join(Root(), "services", "*", "cmd", "*"))
	if err != nil {
		return dir, err
	}
	var packages []string
	for _, c := range commands {
		p, err := filepath.Rel(Root(), c)
		if err != nil {
			return dir, err
		}
		packages = append(packages, "./"+p)
	}
	if err := goTool(ctx, Root(), append(args, packages...)...); err != nil {
		return dir, err
	}
	return dir, goTool(ctx, filepath.Join(Root(), "tests"), "build", "-o", dir+"/", "github.com/nats-io/nats-server/v2")
}

func goTool(ctx context.Context, dir string, args ...string) error {
	cmd := exec.CommandContext(ctx, "go", args...)
	cmd.Dir = dir
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("go %v: %w\n%s", args, err, out)
	}
	return nil
}
