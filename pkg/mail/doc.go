// Package mail holds the words of postrider: the types that every service
// uses to speak of a message, its envelope, its recipients, the route to a
// next hop, and what became of each recipient.
//
// The package does no I/O, knows no clock, and imports nothing of ours. A
// word that is missing here is added here; nobody invents a synonym
// (docs/glossary.md maps each word to its RFC, SQL column and proto field).
package mail
