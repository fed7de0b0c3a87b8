package boot

import (
	"log/slog"
	"os"
	"runtime"
	"slices"
	"syscall"
)

const (
	// kernelSlack is by how much the kernel may delay the wake-up of a thread
	// whose sleep is over unless somebody says otherwise; timerSlack is what
	// we say. The monitor thread of the Go runtime sleeps for 20 µs at a time
	// as long as the process works, and at the default it takes a tenth of its
	// CPU time (docs/performance.md). No wait of ours minds half a millisecond.
	kernelSlack = 50_000  // ns
	timerSlack  = 500_000 // ns

	// slackSet marks the environment of a process that has begun anew.
	slackSet = "TIMER_SLACK_SET"
)

// commandLine is what the process was called with.
var commandLine = slices.Clone(os.Args)

// relaxTimers has all threads of the process woken at timerSlack. Threads
// inherit the value from the one that makes them, and the monitor thread is
// made before any code of ours runs; but an exec keeps the value. So the
// process executes itself once more. An operator who has set another value
// (systemd: TimerSlackNSec) is obeyed.
func relaxTimers() {
	if os.Getenv(slackSet) != "" {
		return
	}
	runtime.LockOSThread() // the thread that execs is the one whose value counts
	defer runtime.UnlockOSThread()
	if slack, errno := prctl(syscall.PR_GET_TIMERSLACK, 0); errno != 0 || slack != kernelSlack {
		return
	}
	path, err := os.Executable()
	if err != nil {
		return
	}
	if _, errno := prctl(syscall.PR_SET_TIMERSLACK, timerSlack); errno != 0 {
		return
	}
	err = syscall.Exec(path, commandLine, append(os.Environ(), slackSet+"=1"))
	slog.Debug("timers stay as they are", "error", err) // it costs CPU time and nothing else
}

func prctl(option, value uintptr) (int, syscall.Errno) {
	r, _, errno := syscall.RawSyscall(syscall.SYS_PRCTL, option, value, 0)
	return int(r), errno
}
