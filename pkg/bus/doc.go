// Package bus is the doorbell between the services: NATS JetStream, frames of
// protobuf, and nothing that is not also in Postgres.
//
// A frame is one bus message of at most 64 KiB with the hints or delivery
// requests of a whole batch. It is published after the commit and without
// waiting for an ack, into streams that may live in memory: a lost hint only
// waits until its row is due again, and Lost tells the scheduler when hints
// may have been lost. A frame is acked when its handler returned nil; a frame
// that comes twice is harmless, because rows are fenced.
//
//	postrider.queued          hints to the resolvers (one shared consumer)
//	postrider.ready.<worker>  delivery requests to a home worker (a consumer each)
//	postrider.failed          hints to the bounce services (one shared consumer)
//	postrider.notice.<topic>  notices, not stored (core NATS); those on "ways" tell ingress where mail goes
//
// The bus is a place where mail could be stolen: whoever reaches NATS can
// listen, publish, and give the same frame again. So each frame and notice ends
// in a seal, made with a key that only services can read, from Postgres
// (docs/decisions/0012): what was forged, changed, cut off, replayed or is old
// is dropped, counted by reason, and logged. Until the keys have been read the
// bus is down. What a frame says of routes and paths is checked all the same,
// so that no row waits for a request that nobody can serve.
//
// Streams and consumers are made and updated by this package, at the start
// and again whenever the server comes back without them. NATS being away
// slows mail and stops nothing: Connect returns at once, publishing returns
// ErrDown, consuming waits, and everything resumes by itself.
package bus
