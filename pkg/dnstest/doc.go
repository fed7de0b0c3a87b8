// Package dnstest is an authoritative DNS server for tests. It answers over
// real UDP and TCP sockets on 127.0.0.1 from a Zone that is written as a
// struct literal and may be replaced while it runs, counts the queries it
// got, and can misbehave: SERVFAIL, silence, delay, truncation, forged
// replies.
//
// Give Server.Addr to a resolver under test, or to a binary by
// POSTRIDER_DNS_SERVERS.
package dnstest
