package devpg

import (
	"context"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
)

func start(t *testing.T, o Options) *Server {
	t.Helper()
	s, err := Start(t.Context(), o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := s.Stop(); err != nil {
			t.Error(err)
		}
	})
	return s
}

func exec1(t *testing.T, s *Server, sql string) string {
	t.Helper()
	conn, err := pgx.Connect(t.Context(), s.URL())
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close(context.WithoutCancel(t.Context()))
	rows, err := conn.Query(t.Context(), sql)
	if err != nil {
		t.Fatal(err)
	}
	vals, err := pgx.CollectRows(rows, pgx.RowTo[string])
	if err != nil {
		t.Fatalf("%s: %v", sql, err)
	}
	return strings.Join(vals, ",")
}

// reachableDir is a directory that the server's account can enter, which
// t.TempDir is not for root.
func reachableDir(t *testing.T) string {
	t.Helper()
	dir, err := os.MkdirTemp("", "devpg-test-")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	if err := os.Chmod(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	return filepath.Join(dir, "pg")
}

func TestTemporaryServerLeavesNothing(t *testing.T) {
	s, err := Start(t.Context(), Options{Settings: map[string]string{"work_mem": "5MB"}})
	if err != nil {
		t.Fatal(err)
	}
	if got := exec1(t, s, "SHOW work_mem"); got != "5MB" {
		t.Errorf("work_mem = %s, want 5MB", got)
	}
	if got := exec1(t, s, "SHOW fsync"); got != "off" {
		t.Errorf("fsync = %s, want off", got)
	}
	pid := s.PID()
	if err := s.Stop(); err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(s.Dir()); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("data directory after Stop: %v, want not exist", err)
	}
	if err := syscall.Kill(pid, 0); err == nil {
		t.Errorf("process %d still runs", pid)
	}
}

func TestKillAndRestartKeepData(t *testing.T) {
	s := start(t, Options{Durable: true})
	if got := exec1(t, s, "SHOW fsync"); got != "on" {
		t.Errorf("fsync = %s, want on", got)
	}
	exec1(t, s, "CREATE TABLE kept AS SELECT 'yes' AS v")
	url := s.URL()
	for name, stop := range map[string]func() error{"kill": s.Kill, "halt": s.Halt} {
		if err := stop(); err != nil {
			t.Fatal(name, err)
		}
		if _, err := pgx.Connect(t.Context(), url); err == nil {
			t.Fatalf("%s: still takes connections", name)
		}
		if err := s.Restart(t.Context()); err != nil {
			t.Fatal(name, err)
		}
		if got := exec1(t, s, "SELECT v FROM kept"); got != "yes" {
			t.Errorf("%s: %q, want yes", name, got)
		}
	}
	if s.URL() != url {
		t.Errorf("URL changed from %s to %s", url, s.URL())
	}
}

func TestDirIsUsedAgain(t *testing.T) {
	dir := reachableDir(t)
	first, err := Start(t.Context(), Options{Dir: dir})
	if err != nil {
		t.Fatal(err)
	}
	exec1(t, first, "CREATE TABLE kept AS SELECT 'yes' AS v")
	if _, err := Start(t.Context(), Options{Dir: dir}); !errors.Is(err, ErrInUse) {
		t.Errorf("second server in the same directory: %v, want ErrInUse", err)
	}
	if err := first.Stop(); err != nil {
		t.Fatal(err)
	}

	stale := filepath.Join(first.Dir(), "postmaster.pid")
	for name, pid := range map[string]int{
		"a pid that another program has now":       other(t, "sleep", "1000"),
		"a pid of a zombie that nobody waits for":  zombie(t),
		"a pid that this process has now":          os.Getpid(),
		"the pid of a process that ended long ago": 1<<22 - 1,
	} {
		line := strconv.Itoa(pid) + "\n" + first.Dir() + "\n1\n5432\n" + first.Dir() + "\n\n  1 1\n"
		if err := os.WriteFile(stale, []byte(line), 0o644); err != nil {
			t.Fatal(err)
		}
		socket := filepath.Join(first.Dir(), ".s.PGSQL.5432.lock") // of the directory's account: Postgres reads what it has left
		if err := os.WriteFile(socket, []byte(line), 0o644); err != nil {
			t.Fatal(err)
		}
		again, err := Start(t.Context(), Options{Dir: dir})
		if err != nil {
			t.Errorf("%s: %v", name, err)
			continue
		}
		if got := exec1(t, again, "SELECT v FROM kept"); got != "yes" {
			t.Errorf("%s: %q, want yes", name, got)
		}
		if err := again.Stop(); err != nil {
			t.Error(err)
		}
	}
}

// other starts a program under the server's account, so that Postgres can see
// it, and returns its pid.
func other(t *testing.T, name string, args ...string) int {
	t.Helper()
	acc, err := findAccount()
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command(name, args...)
	cmd.Dir = "/"
	cmd.SysProcAttr = acc.attributes()
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = cmd.Process.Kill() // it may have ended
		_ = cmd.Wait()         // killed, as we asked for
	})
	return cmd.Process.Pid
}

// zombie returns the pid of a process that has ended and was not waited for.
func zombie(t *testing.T) int {
	t.Helper()
	pid := other(t, "true")
	for deadline := time.Now().Add(10 * time.Second); runs(pid); {
		if time.Now().After(deadline) {
			t.Fatalf("process %d does not end", pid)
		}
		runtime.Gosched()
	}
	if err := syscall.Kill(pid, 0); err != nil {
		t.Fatalf("process %d is no zombie: %v", pid, err)
	}
	return pid
}

// TestServerSeesNoSecrets: what this process has in its environment, SQL
// cannot read.
func TestServerSeesNoSecrets(t *testing.T) {
	t.Setenv("POSTRIDER_SECRET", "hunter2")
	s := start(t, Options{})
	environ, err := os.ReadFile("/proc/" + strconv.Itoa(s.PID()) + "/environ")
	if err != nil {
		t.Fatal(err)
	}
	if strings.Contains(string(environ), "POSTRIDER_") {
		t.Errorf("environment of the server: %q", environ)
	}
}

func TestDirOutOfReachIsElsewhere(t *testing.T) {
	if os.Geteuid() != 0 {
		// An ordinary user reaches its own directories: the data stay put.
		dir := filepath.Join(t.TempDir(), "pg")
		if s := start(t, Options{Dir: dir}); s.Dir() != dir {
			t.Errorf("data in %s, want %s", s.Dir(), dir)
		}
		return
	}
	dir := filepath.Join(t.TempDir(), "pg") // below a directory that only root enters
	first, err := Start(t.Context(), Options{Dir: dir})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(first.Dir()) })
	exec1(t, first, "CREATE TABLE kept AS SELECT 'yes' AS v")
	if err := first.Stop(); err != nil {
		t.Fatal(err)
	}
	second := start(t, Options{Dir: dir})
	if got := exec1(t, second, "SELECT v FROM kept"); got != "yes" {
		t.Errorf("second start: %q, want yes", got)
	}
}

// TestServerEndsWithItsProcess runs this test binary again, kills it with
// signal 9, and waits for the server and its directory to go.
func TestServerEndsWithItsProcess(t *testing.T) {
	if os.Getenv("DEVPG_TEST_CHILD") != "" {
		s, err := Start(t.Context(), Options{})
		if err != nil {
			t.Fatal(err)
		}
		os.Stdout.WriteString("up " + strconv.Itoa(s.PID()) + " " + s.Dir() + "\n")
		select {}
	}
	cmd := exec.Command(os.Args[0], "-test.run=^TestServerEndsWithItsProcess$")
	cmd.Env = append(os.Environ(), "DEVPG_TEST_CHILD=1")
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	buf := make([]byte, 4096)
	n, err := out.Read(buf)
	if err != nil {
		t.Fatal(err)
	}
	words := strings.Fields(string(buf[:n]))
	if len(words) < 3 || words[0] != "up" {
		t.Fatalf("child said %q", buf[:n])
	}
	pid, err := strconv.Atoi(words[1])
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	_ = cmd.Wait() // "signal: killed" is what we asked for
	deadline := time.After(15 * time.Second)
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	for {
		_, err := os.Stat(words[2])
		if !runs(pid) && errors.Is(err, os.ErrNotExist) {
			return
		}
		select {
		case <-deadline:
			t.Fatalf("server %d or its directory %s is still there", pid, words[2])
		case <-tick.C:
		}
	}
}

func TestFindBinaries(t *testing.T) {
	t.Setenv("PATH", t.TempDir())
	base := t.TempDir()
	pattern := filepath.Join(base, "*", "bin")
	_, err := findBinaries(pattern)
	if err == nil || !strings.Contains(err.Error(), "apt-get install postgresql") || strings.Contains(err.Error(), "\n") {
		t.Errorf("no binaries: %v, want one line that names the package", err)
	}
	for _, version := range []string{"9", "15", "17"} {
		dir := filepath.Join(base, version, "bin")
		if err := os.MkdirAll(dir, 0o755); err != nil {
			t.Fatal(err)
		}
		for _, name := range []string{"initdb", "postgres"} {
			if version == "17" && name == "postgres" {
				continue // client tools only: not a server
			}
			if err := os.WriteFile(filepath.Join(dir, name), nil, 0o755); err != nil {
				t.Fatal(err)
			}
		}
	}
	if dir, err := findBinaries(pattern); err != nil || dir != filepath.Join(base, "15", "bin") {
		t.Errorf("findBinaries = %s, %v, want version 15", dir, err)
	}
}
