// Package compose writes messages: from fields, texts and files it makes
// content that any relay takes and any reader shows (RFC 5322, RFC 2045 to
// 2047, RFC 2231, RFC 2387).
//
// Text that is not ASCII or cannot be folded is encoded (RFC 2047), in fields
// that have addresses only the names. Every line is at most 998 octets (78 where it can be folded) and ASCII,
// but for addresses that are not. Texts get the encoding that changes them
// least. What is given must have passed the checks of the caller: no field has
// a control character, no address is malformed.
package compose
