// Package mx finds the hosts that take a domain's mail: RFC 5321 §5.1,
// RFC 7505, RFC 2308. It is the only package of the product that speaks DNS.
//
// A look-up has three layers. client asks the configured name servers over
// UDP and TCP until one gives a definite answer. interpret turns the bytes of
// an answer, which an adversary may have chosen, into a checked answer.
// Resolver applies the rules of mail to checked answers and keeps the result
// until its TTL ends.
//
// What DNS says of a domain is a value, never an error: a Plan, or a Trouble
// that is permanent only when DNS said so definitely. SERVFAIL, timeouts and
// refusals are always transient.
package mx
