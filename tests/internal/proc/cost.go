package proc

import (
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"
)

// ticksPerSecond is the unit of times in /proc/PID/stat. USER_HZ is 100 on
// every Linux that Go runs on.
const ticksPerSecond = 100

// stat is what /proc/PID/stat says of a process.
type stat struct {
	parent int
	ticks  int64 // own, and of all children that ended and were waited for
}

// Tree is a snapshot of all processes.
type Tree map[int]stat

// ReadTree takes a snapshot.
func ReadTree() (Tree, error) {
	names, err := filepath.Glob("/proc/[0-9]*/stat")
	if err != nil {
		return nil, err
	}
	t := make(Tree, len(names))
	for _, name := range names {
		text, err := os.ReadFile(name)
		if errors.Is(err, os.ErrNotExist) || errors.Is(err, syscall.ESRCH) {
			continue // it has ended since the list was made
		}
		if err != nil {
			return nil, err
		}
		pid, err := strconv.Atoi(filepath.Base(filepath.Dir(name)))
		if err != nil {
			return nil, err
		}
		if t[pid], err = parseStat(text); err != nil {
			return nil, fmt.Errorf("%s: %w", name, err)
		}
	}
	return t, nil
}

// parseStat reads the fields of proc(5) behind the name of the program,
// which may hold anything and so is found by its last parenthesis.
func parseStat(text []byte) (stat, error) {
	i := bytes.LastIndexByte(text, ')')
	fields := strings.Fields(string(text[i+1:]))
	if i < 0 || len(fields) < 15 {
		return stat{}, fmt.Errorf("not a stat line: %q", text)
	}
	var s stat
	var err error
	if s.parent, err = strconv.Atoi(fields[1]); err != nil {
		return stat{}, err
	}
	for _, f := range fields[11:15] { // utime stime cutime cstime
		n, err := strconv.ParseInt(f, 10, 64)
		if err != nil {
			return stat{}, err
		}
		s.ticks += n
	}
	return s, nil
}

// Under returns root and its living descendants.
func (t Tree) Under(root int) []int {
	var pids []int
	for pid := range t {
		for p := pid; p > 0; p = t[p].parent {
			if p == root {
				pids = append(pids, pid)
				break
			}
		}
	}
	return pids
}

// CPU returns the processor time of root and all its descendants, those
// that ended included. It is exact to a tick of 10 ms for each living
// process, as long as every parent waits for its children.
func (t Tree) CPU(root int) time.Duration {
	var ticks int64
	for _, pid := range t.Under(root) {
		ticks += t[pid].ticks
	}
	return time.Duration(ticks) * time.Second / ticksPerSecond
}

// PSS returns the proportional set size of root and its living descendants,
// in bytes.
func (t Tree) PSS(root int) (int64, error) {
	var sum int64
	for _, pid := range t.Under(root) {
		text, err := os.ReadFile(fmt.Sprintf("/proc/%d/smaps_rollup", pid))
		if errors.Is(err, os.ErrNotExist) || errors.Is(err, syscall.ESRCH) {
			continue // it has ended since the snapshot
		}
		if err != nil {
			return 0, err
		}
		for line := range strings.Lines(string(text)) {
			if f := strings.Fields(line); len(f) == 3 && f[0] == "Pss:" {
				kib, err := strconv.ParseInt(f[1], 10, 64)
				if err != nil {
					return 0, err
				}
				sum += kib << 10
			}
		}
	}
	return sum, nil
}

// Resident is the memory of one process, in bytes.
type Resident struct{ Now, Peak int64 }

// ReadResident reads the resident set size of a process, and the largest that
// it ever had.
func ReadResident(pid int) (Resident, error) {
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	if err != nil {
		return Resident{}, err
	}
	var r Resident
	for name, to := range map[string]*int64{"VmRSS:": &r.Now, "VmHWM:": &r.Peak} {
		_, rest, _ := strings.Cut(string(text), name)
		if _, err := fmt.Sscanf(rest, "%d kB", to); err != nil {
			return Resident{}, fmt.Errorf("%s of process %d: %w", name, pid, err)
		}
		*to <<= 10
	}
	return r, nil
}

// Disk is a block device by its row in /proc/diskstats.
type Disk struct {
	Name         string
	major, minor uint32
}

// DiskOf returns the block device that holds path. Errors: a file system
// without one, such as tmpfs, where nothing is durable.
func DiskOf(path string) (Disk, error) {
	var st syscall.Stat_t
	if err := syscall.Stat(path, &st); err != nil {
		return Disk{}, fmt.Errorf("stat %s: %w", path, err)
	}
	d := Disk{major: uint32(st.Dev >> 8 & 0xfff), minor: uint32(st.Dev&0xff | st.Dev>>12&0xfff00)}
	c, err := d.Count()
	d.Name = c.name
	return d, err
}

// DiskCount is what a device has done since the machine started.
type DiskCount struct {
	Flushes int64 // cache flushes: one for each fsync that reached the device
	Written int64 // bytes

	name string
}

// Count reads the device's counters: Documentation/admin-guide/iostats.rst
// of Linux; field 20 of the row are the flush requests.
func (d Disk) Count() (DiskCount, error) {
	f, err := os.Open("/proc/diskstats")
	if err != nil {
		return DiskCount{}, err
	}
	defer f.Close()
	lines := bufio.NewScanner(f)
	for lines.Scan() {
		row := strings.Fields(lines.Text())
		if len(row) < 19 || row[0] != fmt.Sprint(d.major) || row[1] != fmt.Sprint(d.minor) {
			continue
		}
		sectors, err := strconv.ParseInt(row[9], 10, 64)
		if err != nil {
			return DiskCount{}, err
		}
		flushes, err := strconv.ParseInt(row[18], 10, 64)
		if err != nil {
			return DiskCount{}, err
		}
		return DiskCount{Flushes: flushes, Written: sectors * 512, name: row[2]}, nil
	}
	return DiskCount{}, errors.Join(lines.Err(), fmt.Errorf("no block device %d:%d: not a disk?", d.major, d.minor))
}
