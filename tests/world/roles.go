package world

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
)

// makeLogins makes the login roles with the lines that docs/operations.md
// prints.
func (w *World) makeLogins(ctx context.Context) error {
	text, err := os.ReadFile(filepath.Join(Root(), "docs", "operations.md"))
	if err != nil {
		return err
	}
	_, after, found := strings.Cut(string(text), "\n### Roles\n")
	_, after, opened := strings.Cut(after, "```sql\n")
	lines, _, closed := strings.Cut(after, "```")
	if !found || !opened || !closed {
		return errors.New("docs/operations.md has no lines that make roles")
	}
	if _, err := w.DB.Exec(ctx, lines); err != nil {
		return fmt.Errorf("the roles of docs/operations.md: %w", err)
	}
	return nil
}

// postgresAs returns the URL of the database for a login.
func (w *World) postgresAs(login string) string {
	return strings.Replace(w.PG.URL(), "postrider@", login+"@", 1)
}

// As runs a command of the postrider binary under a login role, and returns
// what it printed, what it complained of, and its exit code.
func (w *World) As(ctx context.Context, login string, args ...string) (out, complaint string, code int, err error) {
	env := maps.Clone(w.env)
	env["POSTRIDER_POSTGRES_URL"] = w.postgresAs(login)
	c := exec.CommandContext(ctx, filepath.Join(w.bin, "postrider"), args...)
	c.Env = append(list(env), "PATH="+os.Getenv("PATH"))
	c.Dir = w.Dir
	var stdout, stderr strings.Builder
	c.Stdout, c.Stderr = &stdout, &stderr
	err = c.Run()
	var exit *exec.ExitError
	if errors.As(err, &exit) {
		err = nil
	}
	return stdout.String(), stderr.String(), c.ProcessState.ExitCode(), err
}

// CommandsBelow returns the names of the commands below one of the command
// line, or of the first ones.
func (w *World) CommandsBelow(ctx context.Context, path ...string) (names []string, err error) {
	help, err := w.Output(ctx, append(path, "--help")...)
	if err != nil {
		return nil, err
	}
	_, list, _ := strings.Cut(help, "Available Commands:\n")
	list, _, _ = strings.Cut(list, "\n\n")
	for line := range strings.Lines(list) {
		if name := strings.Fields(line)[0]; name != "help" && name != "completion" {
			names = append(names, strings.Join(append(path, name), " "))
		}
	}
	return names, nil
}
