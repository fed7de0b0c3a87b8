// Command ingress takes mail from SMTP clients.
package main

import (
	"context"

	"github.com/postrider/postrider/pkg/boot"
	"github.com/postrider/postrider/pkg/bus"
	"github.com/postrider/postrider/pkg/store"
	"github.com/postrider/postrider/services/ingress"
)

func main() { boot.Main("ingress", run) }

func run(ctx context.Context, p *boot.Process) error {
	var cfg struct {
		Store   store.Config
		Bus     bus.Config
		Ingress ingress.Config
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
	listener, err := ingress.Listen(ctx, cfg.Ingress)
	if err != nil {
		return err
	}
	p.ReadyWhen("postgres", db.Ping)
	p.AlsoTell("nats", nc.Ping)
	return ingress.Run(ctx, cfg.Ingress, ingress.Deps{Listener: listener, Store: db, Bus: nc})
}
