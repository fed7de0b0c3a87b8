// Command scheduler looks after time: it rings what is due, takes back what
// the dead held, and expires.
package main

import (
	"context"

	"github.com/postrider/postrider/pkg/boot"
	"github.com/postrider/postrider/pkg/bus"
	"github.com/postrider/postrider/pkg/store"
	"github.com/postrider/postrider/services/scheduler"
)

func main() { boot.Main("scheduler", run) }

func run(ctx context.Context, p *boot.Process) error {
	var cfg struct {
		Store     store.Config
		Bus       bus.Config
		Scheduler scheduler.Config
	}
	if err := p.Config(&cfg); err != nil {
		return err
	}
	db, err := store.Open(ctx, cfg.Store)
	if err != nil {
		return err
	}
	defer db.Close()
	nc, err := bus.Connect(ctx, cfg.Bus, db)
	if err != nil {
		return err
	}
	defer nc.Close()
	p.ReadyWhen("postgres", db.Ping)
	p.AlsoTell("nats", nc.Ping)
	return scheduler.Run(ctx, cfg.Scheduler, db, nc)
}
