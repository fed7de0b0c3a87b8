package shaping

// The reasons why a key of KumoMTA has no effect.
const (
	whyTimeouts = "starttls_timeout says how long the handshake may take, mail_from_timeout how long AUTH"
	whyRoutes   = "a route of the routing table says it"
	whyTLS      = "TLS is Go's, with its choice of ciphers"
	whySources  = "a source has it"
	whyInside   = "it tunes the inside of KumoMTA"
	whyProtocol = "the client does what the host offers"
)

// unused is the keys of KumoMTA's egress path that mean nothing here. A file
// may have them: they are reported and skipped.
var unused = map[string]string{
	"auth_timeout": whyTimeouts, "tls_handshake_timeout": whyTimeouts,
	"system_shutdown_timeout": "POSTRIDER_DELIVERY_DRAIN_TIMEOUT holds for all",

	"smtp_port": whyRoutes, "smtp_auth_plain_username": whyRoutes, "smtp_auth_plain_password": whyRoutes, "use_lmtp": whyRoutes,
	"allow_smtp_auth_plain_without_tls": "passwords go over verified TLS only", "allow_smtp_auth_plain_without_valid_certificate": "passwords go over verified TLS only",

	"tls_prefer_openssl": whyTLS, "openssl_cipher_list": whyTLS, "openssl_cipher_suites": whyTLS, "openssl_options": whyTLS,
	"rustls_cipher_suites": whyTLS, "tls_certificate": whyTLS, "tls_private_key": whyTLS,

	"remember_broken_tls": "broken TLS is remembered for 3 days", "opportunistic_tls_reconnect_on_failed_handshake": "always so",

	"ehlo_domain": whySources, "ip_lookup_strategy": whySources,
	"skip_hosts": "the resolver decides which addresses are refused", "prohibited_hosts": "the resolver decides which addresses are refused",
	"max_mx_addresses_per_host": "an attempt tries at most 5 addresses", "max_mx_plan_size": "an attempt tries at most 5 addresses",

	"enable_pipelining": whyProtocol, "enable_rset": whyProtocol, "ignore_8bit_checks": whyProtocol,
	"reconnect_strategy": "the next address is tried", "try_next_host_on_transport_error": "the next address is tried",
	"consecutive_connection_failures_before_delay": "the breaker opens when three attempts in a row reach no host, and probes",
	"suspended": "postrider suspension add does it",

	"aggressive_connection_opening": whyInside, "refresh_interval": whyInside, "refresh_strategy": whyInside,
	"readyq_pool_name": whyInside, "low_memory_reduction_policy": whyInside, "no_memory_reduction_policy": whyInside,
	"dispatcher_progress_watchdog_timeout": whyInside, "dispatcher_wakeup_strategy": whyInside, "maintainer_wakeup_strategy": whyInside,
}
