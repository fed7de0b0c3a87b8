// Package postrider is the root of postrider, an outbound mail delivery
// service: durable, explainable, and made of processes that may all die.
//
// A message walks one way, and each service owns one step of it:
//
//	ingress   takes it from a client and commits it to Postgres, then says 250
//	resolver  finds the route of each recipient
//	delivery  relays it to the remote host at the pace that it accepts
//	bounce    reports to the sender what failed or is late
//	scheduler rings for what is due, and takes over from what died
//
// Postgres is the truth; the bus (NATS JetStream) is a doorbell. The words
// are in pkg/mail and docs/glossary.md, the way in docs/walk.md. The root
// package has no code, only the house rules as a test: house_test.go says
// which package may import which, and why.
package postrider
