// Package tlsrpt writes reports on TLS (RFC 8460): the JSON of a day, the mail
// that carries it, and the HTTPS request that does. It knows no store and no
// clock.
package tlsrpt
