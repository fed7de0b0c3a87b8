// Package postrider is the command line of postrider, and the one place where
// the services meet: postrider dev runs all of them in one process.
//
// # Name
//
// postrider - look at the queue, act on it, and run everything for
// development
//
// # Synopsis
//
//	postrider dev
//	postrider queue [--domain D] [--from PATH] [--site S] [--tenant T] [--id ID] [-n LIMIT] [-o json]
//	postrider show QUEUE-ID [-o json]
//	postrider hold|release|retry|fail|cancel [QUEUE-ID] [--domain D] ... [--reason TEXT]
//	postrider site list|suspend SITE|resume SITE
//	postrider route list|set DOMAIN HOST:PORT...|delete DOMAIN
//	postrider tenant add|list|set|suspend|resume|delete [NAME] ...
//	postrider credential add|list|set|disable|enable|delete [NAME] ...
//	postrider domain add|list|delete [DOMAIN] ...
//	postrider shaping explain DOMAIN|validate FILE|show|apply FILE|history|rollback
//	postrider suspension list|add|cancel ID
//	postrider migrate up|status
//	postrider version
//
// # Description
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
// # Consumes
//
// Nothing of its own: each service inside postrider dev takes what it takes
// alone.
//
// # Produces
//
// As its services do. The commands publish nothing: what they change in
// Postgres takes effect by itself.
//
// # Writes
//
// hold, release, retry, fail, cancel: recipients, attempts, reports, by the
// SQL functions of those names. route: routing_rules, relay_credentials. site:
// sites. migrate: the schema. postrider dev: the rules of its demo domains.
//
// # Standards
//
// The demo destination keeps to RFC 5321 as far as a polite client can see.
//
// # Strategies
//
// What was started last stops first: services drain while Postgres, NATS and
// the demo destination still run.
//
// # Security
//
// postrider dev listens on loopback only, unless it is configured otherwise.
// Its Postgres has a socket in a directory that only its user can enter, and
// its NATS a random password. Text from outside is printed without control
// characters.
//
// # Diagnostics
//
// The terminal shows one line for each mail event, and warnings. The whole
// log is in postrider.log of the data directory, all spans are in
// spans.jsonl. Exit codes: 0, 1 for a failure, 2 for a wrong command line or
// configuration.
//
// # Bugs
//
// postrider dev makes no difference between a Ctrl-C that it gets before it
// is ready and a failed start.
//
// # See also
//
// docs/operations.md, docs/configuration.md, docs/walk.md
package postrider

//go:generate go test . -run=TestConfigurationReference -update
