// Package pace holds the limits of one site: how many events may begin in a
// window of time, and how many connections may be open. It is pure: the
// caller says what time it is, keeps the events, and guards each value with
// its own lock.
package pace
