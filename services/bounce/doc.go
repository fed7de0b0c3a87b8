// Package bounce is the service that tells senders what became of their mail:
// step 6 of the walk (docs/walk.md).
//
// # Name
//
// bounce - write delivery status notifications and hand them back to the queue
//
// # Synopsis
//
// POSTRIDER_POSTGRES_URL, POSTRIDER_NATS_URL, POSTRIDER_HOSTNAME,
// POSTRIDER_BOUNCE_LIFETIME; the whole list is in docs/configuration.md.
// Run any number of processes.
//
// # Description
//
// A message of which recipients failed, expired, were delayed for long, or
// were relayed and asked to hear of it, has rows in reports. bounce locks
// them, writes one DSN (RFC 3464) for the recipients that share a fate, and
// accepts it as new mail with a null reverse-path, in one transaction with
// the mark that they were reported. From there a DSN walks like any mail.
//
// Beside that it tells domains that asked for it (RFC 8460) how TLS went with
// their mail exchangers the day before, by mail that is signed and by HTTPS:
// docs/tls.md.
//
// # Consumes
//
// postrider.failed: hints that a message has something to report. A hint is
// acked when it is noted, for the row in reports is what counts: every 5 s,
// and every second while the bus is down, bounce reads the rows that are due.
//
// # Produces
//
// postrider.queued: a hint for each DSN, so that it leaves at once.
//
// # Writes
//
// messages, contents, recipients (the DSN); recipients.final_reported and
// delay_reported; tls_reports; deletes from reports, tls_reports, tls_results.
//
// # Standards
//
// RFC 3461 (NOTIFY, RET, ENVID, ORCPT), RFC 3464 and RFC 6522 (the report),
// RFC 6533 (its international form), RFC 3463 (status codes), RFC 3834
// (Auto-Submitted), RFC 5321 §4.5.5 and §6.1 (null reverse-path), RFC 8460
// (reports on TLS), RFC 6376 (their signature).
//
// # Strategies
//
// Exactly one: whoever holds the rows of a message writes its DSN, and what
// that DSN tells is marked in the transaction that accepts it. A process that
// dies before the commit leaves no trace; a hint that comes again finds
// nothing to report.
//
// Grouping: hints wait a tenth of a second, so that recipients of one message
// that fail together, at different sites, share a DSN.
//
// # Security
//
// A DSN goes to a reverse-path that the client chose. It never answers a null
// reverse-path, holds at most 50,000 bytes of the original, and no text of
// the remote host or the original can add a field or a part to it.
//
// Where a TLS report goes is what a domain published: connections by HTTPS
// refuse addresses inside and follow no redirect.
//
// # Diagnostics
//
// Log events reported and unreported; span bounce.report; metrics
// postrider.reports (by kind), postrider.reports.failed and
// postrider.tls.reports (by way and outcome).
//
// # Bugs
//
// DSNs are not signed by DKIM. Asynchronous bounces and complaints (ARF) are
// not taken in yet. Text is in English only.
//
// # See also
//
// docs/walk.md, package services/bounce/internal/dsn, store.Report.
package bounce
