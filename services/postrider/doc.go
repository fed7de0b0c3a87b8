// Package postrider is the command line of postrider, and the one place where
// the services meet: postrider dev runs all of them in one process.
//
// # NAME
//
// postrider - look at the queue, act on it, and run everything for
// development
//
// # SYNOPSIS
//
//	postrider dev
//	postrider queue [--domain D] [--from PATH] [--site S] [--tenant T] [--id ID] [-n LIMIT] [-o json]
//	postrider show QUEUE-ID [-o json]
//	postrider hold|release|retry|fail|cancel [QUEUE-ID] [--domain D] ... [--reason TEXT]
//	postrider site list|suspend SITE|resume SITE
//	postrider route list|set DOMAIN HOST:PORT...|delete DOMAIN
//	postrider migrate up|status
//	postrider version
//
// # DESCRIPTION
//
// The commands read and change the queue through package store: the views and
// functions of schema postrider, which any SQL client can use too. They find
// Postgres by POSTRIDER_POSTGRES_URL, else by the postrider dev that runs with
// the same POSTRIDER_DATA_DIR.
//
// postrider dev starts what is missing: a durable Postgres (package devpg), a
// NATS server with JetStream inside the process, the schema, and a demo
// destination for demo.test (internal/sink). Then it calls the same Run
// functions that the separate binaries call, so the two cannot drift apart.
//
// # CONSUMES, PRODUCES, WRITES
//
// Nothing of its own: each service in it does what it does alone. The
// commands that act on the queue call SQL functions; those that change
// nothing only read.
//
// # STANDARDS
//
// The demo destination keeps to RFC 5321 as far as a polite client can see.
//
// # STRATEGIES
//
// What was started last stops first: services drain while Postgres, NATS and
// the demo destination still run.
//
// # SECURITY
//
// postrider dev listens on loopback only, unless it is configured otherwise.
// Its Postgres has a socket in a directory that only its user can enter, and
// its NATS a random password. Text from outside is printed without control
// characters.
//
// # DIAGNOSTICS
//
// The terminal shows one line for each mail event, and warnings. The whole
// log is in postrider.log of the data directory, all spans are in
// spans.jsonl. Exit codes: 0, 1 for a failure, 2 for a wrong command line or
// configuration.
//
// # BUGS
//
// postrider dev makes no difference between a Ctrl-C that it gets before it
// is ready and a failed start.
//
// # SEE ALSO
//
// docs/operations.md, docs/configuration.md, docs/walk.md
package postrider

//go:generate go test . -run=TestConfigurationReference -update
