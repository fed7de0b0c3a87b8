// Package mtasts finds the MTA-STS policies of domains: RFC 8461. A policy is
// fetched by HTTPS when the id in the domain's TXT record is a new one, kept
// in Postgres for as long as it says (max_age), fetched again every day, and
// used from there while it cannot be fetched: who blocks a fetch must not be
// able to switch the policy off.
package mtasts
