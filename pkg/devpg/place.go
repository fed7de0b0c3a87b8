package devpg

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"os/user"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"
)

// maxSocketDir is the longest directory that a socket's path leaves room for:
// sun_path has 104 bytes on the BSDs, 108 on Linux.
const maxSocketDir = 103 - len("/.s.PGSQL.5432")

// prepare finds the binaries and the account, makes the data directory ready
// and locks it, and sets the reaper.
func prepare(ctx context.Context, o Options) (*Server, error) {
	binaries, err := findBinaries("/usr/lib/postgresql/*/bin")
	if err != nil {
		return nil, err
	}
	acc, err := findAccount()
	if err != nil {
		return nil, err
	}
	s := &Server{binaries: binaries, account: acc}
	if err := s.place(ctx, o); err != nil {
		if s.lock != nil {
			err = errors.Join(err, s.lock.Close())
		}
		for _, dir := range s.remove {
			err = errors.Join(err, os.RemoveAll(dir))
		}
		return nil, err
	}
	return s, nil
}

func (s *Server) place(ctx context.Context, o Options) error {
	var err error
	if o.Dir == "" {
		if s.dir, err = os.MkdirTemp("", "postrider-pg-"); err != nil {
			return err
		}
		s.remove = append(s.remove, s.dir)
	} else if s.dir, err = s.account.reachable(o.Dir); err != nil {
		return err
	}
	// Resolved, because it is compared with the directory of a process.
	if s.dir, err = filepath.EvalSymlinks(s.dir); err != nil {
		return err
	}
	if err := s.account.own(s.dir); err != nil {
		return err
	}
	if s.lock, err = lockDir(s.dir); err != nil {
		return err
	}
	if err := clearStale(ctx, s.dir); err != nil {
		return err
	}
	s.socket = s.dir
	if len(s.socket) > maxSocketDir {
		if s.socket, err = os.MkdirTemp("", "postrider-pg-"); err != nil {
			return err
		}
		s.remove = append(s.remove, s.socket)
		if err := s.account.own(s.socket); err != nil {
			return err
		}
	}
	if err := s.initialise(ctx, o); err != nil {
		return err
	}
	s.args = arguments(o, s.dir, s.socket)
	s.reaper, err = setReaper(s.account, s.remove)
	return err
}

// initialise runs initdb unless the directory has a cluster.
func (s *Server) initialise(ctx context.Context, o Options) error {
	if _, err := os.Stat(filepath.Join(s.dir, "PG_VERSION")); err == nil {
		return nil
	}
	args := []string{"-D", s.dir, "-U", "postrider", "-E", "UTF8", "--locale=C", "--auth=trust"}
	if !o.Durable {
		args = append(args, "--no-sync")
	}
	cmd := exec.CommandContext(ctx, filepath.Join(s.binaries, "initdb"), args...)
	cmd.Dir, cmd.Env = s.dir, environment()
	cmd.SysProcAttr = s.account.attributes()
	// On SIGTERM initdb removes what it made; after kill -9 half a cluster
	// would be in the way of the next start.
	cmd.Cancel = func() error { return cmd.Process.Signal(syscall.SIGTERM) }
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("initdb: %w: %s", err, strings.TrimSpace(string(out)))
	}
	return nil
}

// findBinaries returns the directory that has initdb and postgres: the one in
// PATH, else the newest of those that the pattern (Debian's layout) finds.
func findBinaries(pattern string) (string, error) {
	if initdb, err := exec.LookPath("initdb"); err == nil {
		if resolved, err := filepath.EvalSymlinks(initdb); err == nil && hasServer(filepath.Dir(resolved)) {
			return filepath.Dir(resolved), nil
		}
	}
	dirs, err := filepath.Glob(pattern)
	if err != nil {
		return "", err
	}
	slices.SortFunc(dirs, func(a, b string) int { return major(b) - major(a) })
	for _, dir := range dirs {
		if hasServer(dir) {
			return dir, nil
		}
	}
	return "", errors.New("no Postgres server found in PATH or /usr/lib/postgresql: install it (Debian, Ubuntu: apt-get install postgresql) or set POSTRIDER_POSTGRES_URL")
}

func hasServer(dir string) bool {
	for _, name := range []string{"initdb", "postgres"} {
		if _, err := exec.LookPath(filepath.Join(dir, name)); err != nil {
			return false
		}
	}
	return true
}

// major returns the version in a path such as /usr/lib/postgresql/15/bin, or
// 0.
func major(dir string) int {
	n, err := strconv.Atoi(filepath.Base(filepath.Dir(dir)))
	if err != nil {
		return 0
	}
	return n
}

// account is who the server runs as. The zero value is the user of this
// process.
type account struct {
	drop     bool // this process is root
	uid, gid uint32
}

// findAccount returns the account for the server, which refuses to run as
// root.
func findAccount() (account, error) {
	if os.Geteuid() != 0 {
		return account{}, nil
	}
	for _, name := range []string{"postgres", "nobody"} {
		u, err := user.Lookup(name)
		if err != nil {
			continue
		}
		uid, errU := strconv.ParseUint(u.Uid, 10, 32)
		gid, errG := strconv.ParseUint(u.Gid, 10, 32)
		if errU == nil && errG == nil {
			return account{drop: true, uid: uint32(uid), gid: uint32(gid)}, nil
		}
	}
	return account{}, errors.New("postgres refuses to run as root, and there is no user postgres or nobody to run it as")
}

func (a account) attributes() *syscall.SysProcAttr {
	attr := &syscall.SysProcAttr{Setpgid: true}
	if a.drop {
		attr.Credential = &syscall.Credential{Uid: a.uid, Gid: a.gid}
	}
	return attr
}

// own gives the directory to the account, for nobody else to enter: the
// server demands it, and it is what guards the socket.
func (a account) own(dir string) error {
	if a.drop {
		if err := os.Chown(dir, int(a.uid), int(a.gid)); err != nil {
			return err
		}
	}
	return os.Chmod(dir, 0o700)
}

// reachable makes the directory and returns its absolute path. When the
// account may not enter a directory above it (a clone under /root), the data
// live under /var/lib/postrider-dev and a symbolic link shows where.
func (a account) reachable(dir string) (string, error) {
	dir, err := filepath.Abs(dir)
	if err != nil {
		return "", err
	}
	if target, err := os.Readlink(dir); err == nil {
		return target, nil
	}
	if err := os.MkdirAll(filepath.Dir(dir), 0o755); err != nil {
		return "", err
	}
	ok, err := a.mayEnter(filepath.Dir(dir))
	if err != nil {
		return "", err
	}
	if ok {
		return dir, os.MkdirAll(dir, 0o700)
	}
	if _, err := os.Lstat(dir); err == nil {
		return "", fmt.Errorf("%s: user %d may not enter the directories above it", dir, a.uid)
	}
	const base = "/var/lib/postrider-dev"
	if err := os.MkdirAll(base, 0o755); err != nil {
		return "", err
	}
	target, err := os.MkdirTemp(base, "pg-")
	if err != nil {
		return "", err
	}
	return target, os.Symlink(target, dir)
}

// mayEnter reports whether the account can pass every directory down to dir,
// by their permission bits.
func (a account) mayEnter(dir string) (bool, error) {
	if !a.drop {
		return true, nil
	}
	for ; ; dir = filepath.Dir(dir) {
		info, err := os.Stat(dir)
		if err != nil {
			return false, err
		}
		bit := os.FileMode(0o001)
		if st, ok := info.Sys().(*syscall.Stat_t); ok && st.Uid == a.uid {
			bit = 0o100
		} else if ok && st.Gid == a.gid {
			bit = 0o010
		}
		if info.Mode()&bit == 0 {
			return false, nil
		}
		if dir == filepath.Dir(dir) {
			return true, nil
		}
	}
}

// ErrInUse says that another process runs a server on the data directory.
var ErrInUse = errors.New("in use by a process that still runs")

// lockDir takes the lock of the data directory, so that two processes never
// run a server on it. The kernel gives it back when this process ends.
func lockDir(dir string) (*os.File, error) {
	f, err := os.Open(dir)
	if err != nil {
		return nil, err
	}
	if err := syscall.Flock(int(f.Fd()), syscall.LOCK_EX|syscall.LOCK_NB); err != nil {
		if errors.Is(err, syscall.EWOULDBLOCK) {
			err = ErrInUse
		}
		return nil, errors.Join(fmt.Errorf("%s: %w", dir, err), f.Close())
	}
	return f, nil
}

// clearStale deals with a postmaster.pid that an earlier life left. We hold
// the lock of the directory, so a server that still runs there is an orphan:
// it is stopped. What the file says of the shared memory stays in any case: by
// it Postgres waits for backends that are still ending.
func clearStale(ctx context.Context, dir string) error {
	file := filepath.Join(dir, "postmaster.pid")
	text, err := os.ReadFile(file)
	if errors.Is(err, os.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	first, rest, _ := strings.Cut(string(text), "\n")
	pid, err := strconv.Atoi(strings.TrimSpace(first))
	if err != nil || pid <= 1 {
		return nil
	}
	if cwd, err := os.Readlink(fmt.Sprintf("/proc/%d/cwd", pid)); err == nil && cwd == dir && runs(pid) {
		if err := stopOrphan(ctx, pid); err != nil {
			return err
		}
	}
	// The lock of the socket has the same pid. Nobody but a server of this
	// directory makes it here, and none runs.
	sockets, err := filepath.Glob(filepath.Join(dir, ".s.PGSQL.*.lock"))
	if err != nil {
		return err
	}
	for _, lock := range sockets {
		if err := os.Remove(lock); err != nil {
			return err
		}
	}
	if syscall.Kill(pid, 0) != nil {
		return nil // Postgres sees by itself that nobody has this pid
	}
	// A zombie that nobody waits for, or another program that has the pid now:
	// to Postgres both look like a server that runs. Of its own parent, which we
	// are, it knows that it is none.
	return os.WriteFile(file, []byte(strconv.Itoa(os.Getpid())+"\n"+rest), 0o600)
}

// stopOrphan stops a server that an earlier process left.
func stopOrphan(ctx context.Context, pid int) error {
	if err := syscall.Kill(pid, syscall.SIGINT); err != nil && !errors.Is(err, syscall.ESRCH) {
		return fmt.Errorf("stop the server that an earlier process left (%d): %w", pid, err)
	}
	ctx, cancel := context.WithTimeout(ctx, stopTimeout)
	defer cancel()
	for runs(pid) {
		if err := pause(ctx, 20*time.Millisecond); err != nil {
			return fmt.Errorf("the server that an earlier process left (%d) does not stop: %w", pid, err)
		}
	}
	return nil
}

// runs reports whether a process runs. A zombie does not: it has ended, and
// keeps its pid until its parent has asked how.
func runs(pid int) bool {
	if syscall.Kill(pid, 0) != nil {
		return false
	}
	status, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	return err != nil || !strings.Contains(string(status), "\nState:\tZ")
}
