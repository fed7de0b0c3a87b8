package boot

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"strings"
	"syscall"
	"testing"
)

// TestTimersAreRelaxed runs this binary as a service, which executes itself
// once more: a thread of it has the slack, and so its monitor thread.
func TestTimersAreRelaxed(t *testing.T) {
	const child = "BOOT_TEST_SLACK"
	if os.Getenv(child) != "" {
		os.Args = os.Args[:1] // the flags are the test's
		Main("child", func(context.Context, *Process) error {
			slack, _ := prctl(syscall.PR_GET_TIMERSLACK, 0)
			fmt.Println("slack", slack)
			return nil
		})
	}
	if slack, errno := prctl(syscall.PR_GET_TIMERSLACK, 0); errno != 0 || slack != kernelSlack {
		t.Skipf("the slack of this process is %d already (%v)", slack, errno)
	}
	cmd := exec.Command(os.Args[0], "-test.run=^TestTimersAreRelaxed$", "--")
	cmd.Env = append(os.Environ(), child+"=1")
	out, err := cmd.CombinedOutput()
	if err != nil || strings.Count(string(out), fmt.Sprintf("slack %d\n", timerSlack)) != 1 {
		t.Errorf("%v\n%s", err, out)
	}
}
