package spool

import (
	"errors"
	"fmt"
	"io"
	"net/netip"
	"os"
)

// Config is where content waits that has not come in whole.
type Config struct {
	Directory string `envconfig:"SPOOL_DIRECTORY" desc:"Where content over 1 MiB is kept while it comes in, in files without a name. Empty: the directory for temporary files of the system (TMPDIR, or /tmp). It needs no backup, and what is there need not reach the disk."`
	Bytes     int64  `envconfig:"SPOOL_BYTES" default:"4294967296" desc:"How much of it a process uses at a time, in bytes; one client gets at most half of that. More gets 452, or 429 by HTTP."`
}

// Validate reports every setting that cannot work.
func (c *Config) Validate() error {
	if c.Bytes < 64<<20 {
		return fmt.Errorf("POSTRIDER_SPOOL_BYTES is %d, want at least %d", c.Bytes, 64<<20)
	}
	return nil
}

// ErrFull says that the client has no room in the spool, or nobody has.
var ErrFull = errors.New("the spool is full")

// fileStep is how much of the budget a file takes at a time.
const fileStep = 1 << 20

// Spool is the room on disk for the content of all clients. It is safe for
// concurrent use.
type Spool struct {
	directory string
	disk      *Budget
}

// Open returns the spool, or why no file can be made there.
func Open(cfg Config) (*Spool, error) {
	s := &Spool{directory: cfg.Directory, disk: NewBudget(cfg.Bytes)}
	if s.directory == "" {
		s.directory = os.TempDir()
	}
	f, err := s.create(netip.Addr{})
	if err == nil {
		err = errors.Join(f.write([]byte("room")), f.close())
	}
	if err != nil {
		return nil, fmt.Errorf("POSTRIDER_SPOOL_DIRECTORY: %w", err)
	}
	return s, nil
}

// Used returns how many bytes files have reserved.
func (s *Spool) Used() int64 { return s.disk.Used() }

// file is content on disk. It has no name.
type file struct {
	f     *os.File
	size  int64
	share Share
}

func (s *Spool) create(client netip.Addr) (*file, error) {
	f, err := os.CreateTemp(s.directory, "postrider-content-*")
	if err != nil {
		return nil, err
	}
	if err := os.Remove(f.Name()); err != nil {
		return nil, errors.Join(err, f.Close())
	}
	return &file{f: f, share: s.disk.Share(client)}, nil
}

// write appends. Errors: ErrFull, or that of the disk.
func (f *file) write(p []byte) error {
	for f.share.held < f.size+int64(len(p)) {
		if !f.share.Take(fileStep) {
			return ErrFull
		}
	}
	n, err := f.f.Write(p)
	f.size += int64(n)
	return err
}

// from returns the content behind its first octets.
func (f *file) from(offset int64) io.Reader {
	return io.NewSectionReader(f.f, offset, f.size-offset)
}

func (f *file) close() error {
	f.share.Close()
	return f.f.Close()
}
