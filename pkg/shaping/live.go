package shaping

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"sync/atomic"
	"time"

	"github.com/postrider/postrider/pkg/mail"
)

const (
	// lookEvery is how often files, versions and measures are looked at: a
	// change holds everywhere within two seconds.
	lookEvery = 500 * time.Millisecond
	// lookWithin bounds one look.
	lookWithin = 5 * time.Second
)

// Board is where versions and measures are kept. *store.Store is one.
type Board interface {
	ShapingHead(ctx context.Context) (version int64, sitesAt time.Time, err error)
	ShapingText(ctx context.Context, version int64) (string, error)
	ShapingSites(ctx context.Context) (map[mail.Domain]mail.Site, error)
	Measures(ctx context.Context) (mail.Measures, error)
}

// Live is the Shaping that holds now. It is exchanged as a whole: whoever
// asks twice may get answers of two versions, but never one of both.
type Live struct {
	cfg      Config
	current  atomic.Pointer[Shaping]
	measures atomic.Pointer[mail.Measures]
	seen     seen // what current is made of; only Look uses it, one at a time
}

// seen is what was last looked at.
type seen struct {
	file    fileState
	version int64
	sitesAt time.Time
	built   *Shaping // of the texts, without measures and sites
	sites   map[mail.Domain]mail.Site
	stale   bool // Postgres could not be read
}

// fileState tells that a file has changed.
type fileState struct {
	at   time.Time
	size int64
}

// Open loads presets and file. The error joins everything that is wrong with
// the file: a process does not start with it. From then on a file or version
// that cannot be read changes nothing.
func Open(cfg Config) (*Live, error) {
	l := &Live{cfg: cfg}
	l.seen.file = stateOf(cfg.File)
	built, err := Load(cfg)
	if err != nil {
		return nil, err
	}
	warnLeftOut(built)
	l.seen.built = built
	l.current.Store(built)
	l.measures.Store(&mail.Measures{})
	return l, nil
}

// Now returns the Shaping that holds now.
func (l *Live) Now() *Shaping { return l.current.Load() }

// For returns the values that hold now; see Shaping.
func (l *Live) For(q Query) Values { return l.Now().For(q) }

// Site returns the site of mail to a domain now; see Shaping.
func (l *Live) Site(domain mail.Domain, hosts []mail.Host, set mail.Site) mail.Site {
	return l.Now().Site(domain, hosts, set)
}

// Measures returns the measures that hold now.
func (l *Live) Measures() mail.Measures { return *l.measures.Load() }

// Follow keeps up with the board until ctx is done, and calls changed after
// each change.
func (l *Live) Follow(ctx context.Context, b Board, changed func()) error {
	tick := time.NewTicker(lookEvery)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
		}
		did, err := l.Look(ctx, b)
		switch {
		case ctx.Err() != nil:
			return nil
		case err != nil && !l.seen.stale:
			slog.Warn("shaping cannot be read from Postgres; the last one holds", "error", err)
		case err == nil && l.seen.stale:
			slog.Info("shaping can be read from Postgres again")
		}
		l.seen.stale = err != nil
		if did {
			changed()
		}
	}
}

// Look looks once and reports whether anything has changed.
func (l *Live) Look(ctx context.Context, b Board) (changed bool, err error) {
	ctx, cancel := context.WithTimeout(ctx, lookWithin)
	defer cancel()
	version, sitesAt, err := b.ShapingHead(ctx)
	if err != nil {
		return false, err
	}
	measures, err := b.Measures(ctx)
	if err != nil {
		return false, err
	}
	if file := stateOf(l.cfg.File); version != l.seen.version || file != l.seen.file {
		text := ""
		if version != 0 {
			if text, err = b.ShapingText(ctx, version); err != nil {
				return false, err
			}
		}
		l.seen.version, l.seen.file = version, file
		if built, err := l.build(version, text); err != nil {
			// What holds stays until there is a better one.
			slog.Error("new shaping refused; the last one holds", "version", version, "error", err)
		} else {
			warnLeftOut(built)
			l.seen.built = built
			changed = true
			slog.Info("new shaping holds", "version", version, "file", l.cfg.File)
		}
	}
	if !sitesAt.Equal(l.seen.sitesAt) {
		if l.seen.sites, err = b.ShapingSites(ctx); err != nil {
			return false, err
		}
		l.seen.sitesAt = sitesAt
		changed = true
	}
	if !changed && measures.Equal(l.Measures()) {
		return false, nil
	}
	next, bad := l.seen.built.With(measures, l.seen.sites)
	if bad != nil {
		slog.Warn("measure left out", "error", bad)
	}
	l.measures.Store(&measures)
	l.current.Store(next)
	return true, nil
}

func warnLeftOut(s *Shaping) {
	for _, err := range s.LeftOut() {
		slog.Warn("shaping rule cannot be read, left out; the others hold", "error", err)
	}
}

// build makes a Shaping of presets, file and version.
func (l *Live) build(version int64, text string) (*Shaping, error) {
	texts, err := l.cfg.Texts()
	if err != nil {
		return nil, err
	}
	if version != 0 {
		texts = append(texts, Text{fmt.Sprintf("version %d", version), text})
	}
	s, _, err := Build(l.cfg, texts...)
	return s, err
}

// stateOf returns the state of a file. One that cannot be looked at has none
// of its own, so that it is tried when it can be again.
func stateOf(path string) fileState {
	if path == "" {
		return fileState{}
	}
	info, err := os.Stat(path)
	if errors.Is(err, os.ErrNotExist) {
		return fileState{size: -1}
	}
	if err != nil {
		return fileState{size: -2}
	}
	return fileState{info.ModTime(), info.Size()}
}
