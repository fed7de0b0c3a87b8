// Command bounce tells senders what became of their mail.
package main

import (
	"context"

	"github.com/postrider/postrider/pkg/boot"
	"github.com/postrider/postrider/pkg/bus"
	"github.com/postrider/postrider/pkg/store"
	"github.com/postrider/postrider/services/bounce"
)

func main() { boot.Main("bounce", run) }

func run(ctx context.Context, p *boot.Process) error {
	var cfg struct {
		Store  store.Config
		Bus    bus.Config
		Bounce bounce.Config
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
	return bounce.Run(ctx, cfg.Bounce, db, nc)
}
