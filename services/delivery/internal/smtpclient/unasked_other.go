//go:build !linux

package smtpclient

import "net"

// unasked cannot be told here without waiting: what a host has said to nobody
// is found when its replies do not fit.
func unasked(net.Conn) bool { return false }
