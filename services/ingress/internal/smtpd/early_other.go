//go:build !unix

package smtpd

import "net"

// hasInput reports nothing where sockets cannot be looked at.
func hasInput(net.Conn) bool { return false }
