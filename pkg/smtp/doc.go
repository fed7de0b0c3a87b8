// Package smtp is the wire grammar of RFC 5321 that both ends share:
// commands and their parameters, paths, replies, and the transparency
// procedure ("dot-stuffing") of DATA.
//
// The package reads and writes bytes; it knows no sockets, no TLS and no
// queue. Everything that comes from a peer is bounded and checked here, so
// that what leaves this package as a mail type is well-formed:
//
//   - ParseCommand, ParseMail, ParseRcpt and ParseBDAT read what a client says,
//     ParseReversePath and ParseForwardPath the paths in it;
//   - AppendReply and ReadReply print and read replies;
//   - DotReader and DotWriter carry content through DATA, exactly.
//
// A parser answers with an error that says which rule was broken (the Err
// variables); which reply that earns is the choice of the session.
package smtp
