package proc

import (
	"runtime"
	"syscall"
)

func startThread() {
	runtime.LockOSThread()
	for f := range starts {
		f()
	}
}

func attributes(u *User) *syscall.SysProcAttr {
	a := &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL, Setpgid: true}
	if u != nil {
		a.Credential = &syscall.Credential{Uid: u.UID, Gid: u.GID}
	}
	return a
}
