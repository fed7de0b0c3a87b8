// Package spool holds content while it comes in, however long that takes.
//
// Content up to 1 MiB stays in memory as long as its client's share of the
// budget lasts. What is larger, or has no room, goes to a temporary file that
// has no name: nothing is left of it when the process dies. So a client that
// is slow holds no transaction, no connection to Postgres and little memory.
// When all has come, the content is read back and accepted at our own pace.
//
// budget.go divides bytes among clients, file.go is the disk, buffer.go the
// content of one message.
package spool
