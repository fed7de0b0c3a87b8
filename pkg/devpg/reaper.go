package devpg

import (
	"errors"
	"fmt"
	"io"
	"os/exec"
	"strconv"
)

// reaperScript reads the server's process id, again at each start and empty at
// each stop. The end of the input comes when the process that holds the other
// end closes it or dies, even by kill -9. Then the script stops the server at
// once and removes what was temporary. A server that nobody waits for stays as
// a zombie: it has ended too. (Linux's parent death signal would do
// the first half only, and follows a thread, not a process.)
const reaperScript = `
pid=
while read -r line; do pid=$line; done
if [ -n "$pid" ]; then
	kill -QUIT "$pid"
	while kill -0 "$pid" && ! grep -q '^State:.Z' "/proc/$pid/status"; do sleep 0.1; done
fi
[ $# -eq 0 ] || rm -rf "$@"
`

// reaper is a small process that cleans up behind us.
type reaper struct {
	cmd  *exec.Cmd
	life io.WriteCloser // open as long as we live
}

func setReaper(a account, remove []string) (*reaper, error) {
	cmd := exec.Command("/bin/sh", append([]string{"-c", reaperScript, "devpg-reaper"}, remove...)...)
	cmd.Dir = "/"
	cmd.Env = environment()
	cmd.SysProcAttr = a.attributes()
	life, err := cmd.StdinPipe()
	if err != nil {
		return nil, err
	}
	if err := cmd.Start(); err != nil {
		return nil, fmt.Errorf("start the reaper: %w", err)
	}
	return &reaper{cmd: cmd, life: life}, nil
}

// watch tells the reaper which process to stop; 0 is none.
func (r *reaper) watch(pid int) error {
	line := "\n"
	if pid != 0 {
		line = strconv.Itoa(pid) + "\n"
	}
	_, err := io.WriteString(r.life, line)
	return err
}

// dismiss ends the reaper after the server has stopped. How the shell exits
// does not matter: there is nothing left for it to do.
func (r *reaper) dismiss() error {
	err := r.life.Close()
	var exit *exec.ExitError
	if werr := r.cmd.Wait(); !errors.As(werr, &exit) {
		err = errors.Join(err, werr)
	}
	return err
}
