// Package auth holds what proves who a client is, and what it may then name:
// hashes of passwords (argon2id), keys of SCRAM-SHA-256, API keys, and
// patterns of addresses.
//
// The package does no I/O. Secrets are made here, so that the command line
// and ingress agree on them; package store keeps what this package returns.
// Every comparison of a secret takes the same time wherever it fails.
package auth
