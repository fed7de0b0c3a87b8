// Remote is a remote host that misbehaves in one way out of a table:
//
//	go run ./tests/remote -list
//	go run ./tests/remote -listen 127.0.0.1:2526 stall-at-rcpt
//
// It prints what its clients did when it is interrupted. With -table it
// prints docs/failures.md. The test of this package runs the whole table
// against the real services.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/signal"

	"github.com/postrider/postrider/pkg/smtptest"
	"github.com/postrider/postrider/tests/remote/hostile"
)

func main() {
	list := flag.Bool("list", false, "list the scenarios")
	table := flag.Bool("table", false, "print docs/failures.md")
	listen := flag.String("listen", "127.0.0.1:2526", "where to listen")
	flag.Parse()
	var err error
	switch {
	case *list:
		for _, s := range hostile.All() {
			fmt.Printf("%-32s %s: %s\n", s.Name, s.At, s.Host)
		}
	case *table:
		fmt.Print(hostile.Table())
	default:
		err = serve(*listen, flag.Arg(0))
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}

// serve is the host of a scenario until an interrupt.
func serve(address, name string) error {
	scenario, err := hostile.Find(name)
	if err != nil {
		return err
	}
	if scenario.Script == nil {
		return errors.New("this host does not listen: leave the port alone")
	}
	kit := &hostile.Kit{}
	if kit.Authority, err = smtptest.NewAuthority(); err != nil {
		return err
	}
	script, err := scenario.Script(kit)
	if err != nil {
		return err
	}
	script.Address, script.Hostname = address, scenario.MX()
	host, err := smtptest.Listen(script)
	if err != nil {
		return err
	}
	fmt.Printf("%s: %s; at %s until an interrupt\n", scenario.Name, scenario.Host, host.Addr())
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt)
	defer stop()
	<-ctx.Done()
	host.Close()
	for _, c := range host.Connections() {
		fmt.Printf("connection %d from %s, TLS %q: %q\n", c.ID, c.Remote, c.TLS, c.Commands)
	}
	for _, t := range host.Transactions() {
		fmt.Printf("transaction on connection %d: <%s> to %q, %d octets, reply %d\n", t.Connection, t.ReversePath, t.Accepted(), t.Size, t.Code)
	}
	for _, v := range host.Violations() {
		fmt.Println("against the protocol:", v)
	}
	return nil
}
