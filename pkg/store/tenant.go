package store

import (
	"time"
)

// Limits bound what a tenant or a credential may send. Zero is no bound.
type Limits struct {
	MessagesPerSecond float64 // at one ingress process
	RecipientsPerDay  int64   // UTC days
	BytesPerDay       int64   // of content
}

// Tenant is a customer of the installation.
type Tenant struct {
	Name           string
	Priority       int16 // of its messages; higher goes first
	Limits         Limits
	SuspendedUntil time.Time // zero, or past: not suspended
	SuspendReason  string
	CreatedAt      time.Time
}
