// Package postriderv1 is version 1 of the contracts of the bus: the frames
// that ring for queued mail, carry delivery requests to their home, and ring
// for reports. It is generated from frame.proto (make generate); only pkg/bus
// imports it.
package postriderv1
