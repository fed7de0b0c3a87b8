// Package sevenbit makes content fit for a host that takes octets up to 127
// only, or lines of at most 998 octets: the conversion of RFC 6152 §3.
//
//	plan, err := sevenbit.Scan(content)       // what is there
//	err = plan.Convert(w, content again)      // parts in quoted-printable or base64
//
// Content is read twice and never held: the memory of both is one line, and a
// few octets for each MIME part. What a reader sees when it has decoded the
// parts is the same before and after, octet for octet; the signatures over the
// encoded form (DKIM, multipart/signed) are not, which Plan.Signed tells.
//
// Header sections are changed in the fields that say how a body is encoded
// and in no other. So octets over 127 in a header section have no conversion.
package sevenbit
