// Bench measures postrider beside a tuned Postfix on the same machine:
// smtp-source -> MTA -> smtp-sink over loopback, with durable commits in
// both. All runs of one call are interleaved, so that a noisy machine is
// noisy for both, and medians are printed.
//
//	go run ./tests/bench -workload a,b -rounds 3
//
// A run counts only when every sink got every message exactly once and the
// MTA has nothing queued any more. Before each run the MTA, fresh and empty,
// has relayed some messages that are not measured.
//
// CPU time is the sum of utime, stime and of those of ended children of all
// processes of the MTA (Postgres and NATS included) between the first
// message and the empty queue, from /proc/PID/stat. Flushes are the flush
// requests that the block device completed (/proc/diskstats), so nothing
// else should use the disk meanwhile. PSS is read when the last message has
// arrived. Postfix logs to syslog where there is one, postrider to files.
package main
