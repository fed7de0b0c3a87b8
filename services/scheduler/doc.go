// Package scheduler is the service that looks after time: step 2 of the walk
// (docs/walk.md).
//
// # Name
//
// scheduler - ring what is due, take back what the dead held, expire, tidy up
//
// # Synopsis
//
// POSTRIDER_POSTGRES_URL, POSTRIDER_NATS_URL, POSTRIDER_HISTORY_RETENTION,
// POSTRIDER_ACCOUNTING_INTERVAL; the whole list is in docs/configuration.md.
// Run any number of processes: there is no leader, rows are taken with SKIP
// LOCKED, and a step done twice is harmless.
//
// # Description
//
// Eight loops, each of which does one thing and survives the absence of
// Postgres and NATS:
//
//	ring        recipients that are due get a hint on the bus       250 ms
//	reclaim     claims of dead workers become due again             1 s
//	expire      recipients in any state whose time has come end     1 s
//	notice      messages with a due report get a hint for bounce    2 s
//	lag         how long work waits, per stage                      5 s
//	claims      that have lasted longer than any can are counted    1 min
//	partitions  are made ahead of time and dropped when done with   10 min
//	accounts    hours that may have changed are counted             1 min
//	keys        the key of the bus is replaced when a day old       1 h
//
// When the bus lost its hints, everything that was rung becomes due at once.
// While the bus is down nothing is rung: resolvers take from Postgres.
//
// # Consumes
//
// bus.Lost: the signal that hints may be gone.
//
// # Produces
//
// postrider.queued: hints for resolvers. postrider.failed: hints for bounce.
//
// # Writes
//
// recipients (rung, next_attempt_at; the claim of a dead worker; state
// expired), attempts, reports, workers, slots, accounts, bus_keys; the partitions of all
// tables that grow. It removes routes, keys and sites that are long over.
//
// # Standards
//
// RFC 5321 §4.5.4.1 (retry and give-up), RFC 3463 X.4.7 (expired).
//
// # Strategies
//
// A recipient is inserted armed: its hint is published by whoever accepted it,
// and only when that hint had no effect for a while is it rung here. A hint
// that may still wait on the bus, because an older one does, is late, not lost:
// it is repeated 10 s after it was published, few at a time, and then after
// twice as long each time.
//
// Flow: rows are rung page by page as long as the resolvers keep up. When the
// oldest hint has waited for a second, one page per round keeps retries
// moving beside a flood of new mail, and the rest waits in Postgres, where
// waiting costs nothing.
//
// # Security
//
// None of its own: it reads no content and talks to nobody outside.
//
// # Diagnostics
//
// Each loop logs its first failure and its recovery. Log lines for workers
// that died, with what was taken back. Metrics: postrider.rung,
// postrider.reclaimed, postrider.uncertain, postrider.expired,
// postrider.queue.recipients (by state), postrider.accepted.recipients,
// postrider.unaccounted, postrider.claims.overdue, postrider.stage.lag (by
// stage).
//
// # Bugs
//
// The accounts of mail that has waited for more than two hours are up to 10
// minutes old.
//
// # See also
//
// docs/walk.md, store.Ring, store.Reclaim, store.Expire.
package scheduler
