package smtpclient

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"crypto/sha512"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"errors"
	"math/big"
	"testing"
	"time"

	"github.com/postrider/postrider/pkg/mail"
	"github.com/postrider/postrider/pkg/smtptest"
)

// issued is a certificate and what may sign with it.
type issued struct {
	cert *x509.Certificate
	key  *ecdsa.PrivateKey
}

// issue makes a certificate; by nil signs itself.
func issue(t *testing.T, name string, authority bool, ends time.Time, by *issued) *issued {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	tmpl := &x509.Certificate{
		SerialNumber: big.NewInt(time.Now().UnixNano()), Subject: pkix.Name{CommonName: name},
		NotBefore: ends.Add(-48 * time.Hour), NotAfter: ends, BasicConstraintsValid: true, IsCA: authority,
	}
	if authority {
		tmpl.KeyUsage = x509.KeyUsageCertSign
	} else {
		tmpl.DNSNames = []string{name}
		tmpl.ExtKeyUsage = []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth}
	}
	parent, signer := tmpl, key
	if by != nil {
		parent, signer = by.cert, by.key
	}
	der, err := x509.CreateCertificate(rand.Reader, tmpl, parent, key.Public(), signer)
	if err != nil {
		t.Fatal(err)
	}
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	return &issued{cert, key}
}

func record(usage, selector, matching uint8, c *x509.Certificate) mail.TLSA {
	data := c.Raw
	if selector == 1 {
		data = c.RawSubjectPublicKeyInfo
	}
	switch matching {
	case 1:
		sum := sha256.Sum256(data)
		data = sum[:]
	case 2:
		sum := sha512.Sum512(data)
		data = sum[:]
	}
	return mail.TLSA{Usage: usage, Selector: selector, Matching: matching, Data: data}
}

func TestDANE(t *testing.T) {
	soon, past := time.Now().Add(time.Hour), time.Now().Add(-time.Hour)
	root := issue(t, "root", true, soon, nil)
	middle := issue(t, "middle", true, soon, root)
	leaf := issue(t, "mx.example", false, soon, middle)
	other := issue(t, "mx.example", false, soon, nil)
	expired := issue(t, "mx.example", false, past, middle)
	wrong := issue(t, "other.example", false, soon, middle)
	dead := issue(t, "dead", true, past, root)
	underDead := issue(t, "mx.example", false, soon, dead)
	for _, c := range []struct {
		name    string
		records []mail.TLSA
		chain   []*issued
		names   []string
		good    bool
	}{
		{"EE, key, SHA-256", []mail.TLSA{record(3, 1, 1, leaf.cert)}, []*issued{leaf}, nil, true},
		{"EE, certificate, SHA-512", []mail.TLSA{record(3, 0, 2, leaf.cert)}, []*issued{leaf}, nil, true},
		{"EE, whole key", []mail.TLSA{record(3, 1, 0, leaf.cert)}, []*issued{leaf}, nil, true},
		{"EE, whole certificate", []mail.TLSA{record(3, 0, 0, leaf.cert)}, []*issued{leaf}, nil, true},
		{"EE mismatch", []mail.TLSA{record(3, 1, 1, other.cert)}, []*issued{leaf, middle, root}, nil, false},
		{"EE of a certificate that is not the first", []mail.TLSA{record(3, 1, 1, middle.cert)}, []*issued{leaf, middle}, nil, false},
		{"EE, expired (RFC 7672 §3.1.1)", []mail.TLSA{record(3, 1, 1, expired.cert)}, []*issued{expired}, nil, true},
		{"EE, another name (RFC 7672 §3.1.1)", []mail.TLSA{record(3, 1, 1, wrong.cert)}, []*issued{wrong}, nil, true},
		{"one of two, for a roll-over", []mail.TLSA{record(3, 1, 1, other.cert), record(3, 1, 1, leaf.cert)}, []*issued{leaf}, nil, true},
		{"TA, root", []mail.TLSA{record(2, 0, 1, root.cert)}, []*issued{leaf, middle, root}, nil, true},
		{"TA, in the middle", []mail.TLSA{record(2, 1, 1, middle.cert)}, []*issued{leaf, middle}, nil, true},
		{"TA, not shown", []mail.TLSA{record(2, 0, 1, root.cert)}, []*issued{leaf, middle}, nil, false},
		{"TA, not shown, whole in the record", []mail.TLSA{record(2, 0, 0, root.cert)}, []*issued{leaf, middle}, nil, true},
		{"TA, shown and not of the chain", []mail.TLSA{record(2, 0, 1, root.cert)}, []*issued{other, root}, nil, false},
		{"TA, expired", []mail.TLSA{record(2, 1, 1, middle.cert)}, []*issued{expired, middle}, nil, false},
		{"TA, authority in between expired", []mail.TLSA{record(2, 0, 1, root.cert)}, []*issued{underDead, dead, root}, nil, false},
		{"TA, another name", []mail.TLSA{record(2, 1, 1, middle.cert)}, []*issued{wrong, middle}, nil, false},
		{"TA, one of the names", []mail.TLSA{record(2, 1, 1, middle.cert)}, []*issued{wrong, middle}, []string{"mx.example", "other.example"}, true},
		{"TA fails, EE holds", []mail.TLSA{record(2, 1, 1, middle.cert), record(3, 1, 1, wrong.cert)}, []*issued{wrong, middle}, nil, true},
		{"usage 1 is none of ours", []mail.TLSA{record(1, 1, 1, leaf.cert)}, []*issued{leaf}, nil, false},
		{"no record", nil, []*issued{leaf}, nil, false},
	} {
		config := &tls.Config{Certificates: []tls.Certificate{{PrivateKey: c.chain[0].key}}}
		for _, i := range c.chain {
			config.Certificates[0].Certificate = append(config.Certificates[0].Certificate, i.cert.Raw)
		}
		mx := smtptest.Start(t, smtptest.Script{TLS: config})
		host, o := optionsFor(mx)
		host.Name = "mx.example"
		o.TLS, o.TLSA, o.Names = mail.TLSDANE, c.records, c.names
		o.TLSConfig = &tls.Config{MinVersion: tls.VersionTLS12, ClientSessionCache: tls.NewLRUClientSessionCache(4)}
		for round := range 2 { // the second one may resume the session
			s, a := Dial(t.Context(), host, o)
			if (s != nil) != c.good {
				t.Errorf("%s, round %d: %+v", c.name, round, a)
			}
			if s != nil {
				s.Close()
			} else if !errors.Is(a.Err, ErrHandshake) || !errors.Is(a.Err, ErrUntrusted) {
				t.Errorf("%s: %v, want ErrUntrusted", c.name, a.Err)
			}
		}
	}
}

// TestSmallHello: the ClientHello without the large key share fits into one
// packet, and the handshake succeeds with it.
func TestSmallHello(t *testing.T) {
	config, err := smtptest.SelfSigned("mx.example")
	if err != nil {
		t.Fatal(err)
	}
	var curves [][]tls.CurveID
	config.GetConfigForClient = func(hello *tls.ClientHelloInfo) (*tls.Config, error) {
		curves = append(curves, hello.SupportedCurves)
		return nil, nil
	}
	for _, small := range []bool{false, true} {
		mx := smtptest.Start(t, smtptest.Script{TLS: config})
		host, o := optionsFor(mx)
		o.SmallHello = small
		s, a := Dial(t.Context(), host, o)
		if s == nil || s.TLS() == "" {
			t.Fatalf("small %v: %+v", small, a)
		}
		s.Close()
	}
	large := func(all []tls.CurveID) bool {
		for _, c := range all {
			if c == tls.X25519MLKEM768 {
				return true
			}
		}
		return false
	}
	if len(curves) != 2 || !large(curves[0]) || large(curves[1]) {
		t.Errorf("offered %v", curves)
	}
}
