// Package shaping answers how mail for a domain and site is to be sent: how
// many connections, how fast, over which TLS, when to retry and when to give
// up.
//
// The answers come in layers, each over the one before: what this package
// says by default, the environment (Config), and the blocks of the file named
// by POSTRIDER_SHAPING_FILE: ["default"], [provider."name"], and ["name"] of
// a site or domain, each with a block for each source that differs. Keys are spelled as in KumoMTA's shaping.toml where it
// has them:
//
//	["default"]
//	connection_limit = 10
//	max_message_rate = "100/s"
//
//	[provider."google"]
//	match = [{MXSuffix=".google.com"}, {DomainSuffix=".gmail.com"}]
//	connection_limit = 5
//	max_deliveries_per_connection = 50
//
//	[provider."google".sources."new-1"]
//	max_message_rate = "10/min"
//
//	["example.com"]
//	mx_rollup = false
//	max_age = "2 days"
//
// A Shaping never changes after Load, so it may be used from any goroutine.
package shaping
