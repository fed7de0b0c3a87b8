// Package egress makes the connections that leave from a source: from an
// address of this machine, through the SOCKS5 listener of a worker that has
// the address, or through a proxy of the operators (SOCKS5, or HAProxy by its
// PROXY protocol):
//
//	conn, err := egress.Way{Local: address}.Dial(ctx, target)
//
// An error that is an ErrEgress is trouble of the way, not of the target: the
// next source may well reach it.
//
// Listen is the other side: the SOCKS5 listener of a worker, for those that
// know its key. It connects only from sources that it is told of, and only to
// the ports that it is told of.
package egress
