package smtpclient

import (
	"bufio"
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"strings"
	"time"

	"github.com/postrider/postrider/pkg/mail"
)

// Host is one address of one mail exchanger.
type Host struct {
	Name string // as in mail.Host; the name that a certificate must have
	Addr netip.AddrPort
}

// Options say how to open a session.
type Options struct {
	Hello string        // our name in EHLO
	TLS   mail.TLSLevel // "" is mail.TLSMay
	// TLSA and Names are for mail.TLSDANE: the records that authenticate the
	// host, and the names that a certificate may have by DANE-TA. The first
	// name, if there is one, is the one to ask for.
	TLSA  []mail.TLSA
	Names []string
	// SmallHello leaves out the key share against quantum computers, for
	// hosts and middleboxes that cannot read a ClientHello of two packets.
	SmallHello bool
	// Witness has the certificate looked at although it does not count: see
	// Session.Distrust. It is for mail.TLSMay and mail.TLSEncrypt.
	Witness bool
	// TLSConfig is the base of our TLS configuration: roots, session cache,
	// curves, client certificates. It is cloned. nil: TLS 1.2 or later and
	// the system's roots.
	TLSConfig *tls.Config
	// Dial makes the TCP connection; nil: from this machine as it is.
	Dial     func(context.Context, netip.AddrPort) (net.Conn, error)
	Timeouts Timeouts
	// Lockstep has each command wait for the reply to the one before, whatever
	// the host offers.
	Lockstep bool
	// LMTP says that the host speaks LMTP: RFC 2033.
	LMTP bool
	// ImplicitTLS says that TLS begins with the connection: RFC 8314 §3.3.
	ImplicitTLS bool
	// Auth, if not nil, is what we authenticate by before the first
	// transaction.
	Auth    *Credential
	Observe func(Step) // called for connect, banner, EHLO, STARTTLS and AUTH; may be nil
}

const (
	readBuffer  = 4 << 10
	writeBuffer = 8 << 10 // a message of ordinary size leaves in one write
)

// Dial connects to a host, waits for its greeting, says EHLO and starts TLS
// as the options demand. On failure the session is nil and the Answer says
// why. Under mail.TLSMay a host that refuses STARTTLS for good (5yz) is used
// in plaintext; when it refuses it for now (4yz), or the handshake fails, the
// answer has PhaseStartTLS, and the caller may dial again with mail.TLSNone.
//
// The context bounds the dial; the session does not keep it.
func Dial(ctx context.Context, host Host, o Options) (*Session, Answer) {
	s := &Session{host: host, timeouts: orDefault(o.Timeouts), observe: o.Observe, lmtp: o.LMTP, lockstep: o.Lockstep}
	if failed := s.connect(ctx, o.Dial); failed.Phase != "" {
		return nil, failed
	}
	release := s.bind(ctx)
	failed := s.open(ctx, o)
	if err := release(); err != nil && failed.Phase == "" {
		failed = Answer{Phase: mail.PhaseHello, Err: err}
	}
	if failed.Phase != "" {
		failed.Local = s.Local()
		s.abort()
		return nil, failed
	}
	s.observe = nil
	return s, Answer{}
}

func (s *Session) connect(ctx context.Context, dial func(context.Context, netip.AddrPort) (net.Conn, error)) Answer {
	if dial == nil {
		dial = direct
	}
	within, cancel := context.WithTimeout(ctx, s.timeouts.Connect)
	defer cancel()
	began := time.Now()
	c, err := dial(within, s.host.Addr)
	s.saw(Step{Phase: mail.PhaseConnect, Err: err, Took: time.Since(began)})
	if err != nil {
		return Answer{Phase: mail.PhaseConnect, Err: fault(ctx, err)}
	}
	s.tcp = c
	s.speakOn(c)
	return Answer{}
}

func direct(ctx context.Context, to netip.AddrPort) (net.Conn, error) {
	var d net.Dialer
	return d.DialContext(ctx, "tcp", to.String())
}

// speakOn makes c the connection to speak on, with nothing read yet.
func (s *Session) speakOn(c net.Conn) {
	s.conn = c
	if s.r == nil {
		s.r = bufio.NewReaderSize(c, readBuffer)
		s.w = bufio.NewWriterSize(&s.out, writeBuffer)
	}
	s.out.conn = c
	s.r.Reset(c)
	s.w.Reset(&s.out)
}

// open does what comes before the first transaction. The zero Answer is
// success.
func (s *Session) open(ctx context.Context, o Options) Answer {
	if o.ImplicitTLS {
		if failed := s.secureBy(ctx, o); failed.Phase != "" {
			return failed
		}
	}
	s.sentAt = time.Now()
	reply, err := s.await(mail.PhaseBanner, s.timeouts.Banner)
	if err != nil || reply.Code/100 != 2 {
		return refused(mail.PhaseBanner, reply, fault(ctx, err))
	}
	if failed := s.sayHello(ctx, o.Hello); failed.Phase != "" {
		return failed
	}
	if o.TLS != mail.TLSNone && !o.ImplicitTLS {
		if failed := s.startTLS(ctx, o); failed.Phase != "" {
			return failed
		}
	}
	return s.authenticate(ctx, o.Auth)
}

// sayHello says EHLO, and HELO to a host that does not know it: RFC 5321
// §3.2. A 5yz to EHLO can mean anything, so HELO has the last word, unless
// the host has hung up on EHLO: then that reply is the reason.
func (s *Session) sayHello(ctx context.Context, name string) Answer {
	s.offers = offers{}
	verb := "EHLO "
	if s.lmtp {
		verb = "LHLO " // RFC 2033 §4.1: and nothing else
	}
	reply, err := s.ask(mail.PhaseHello, s.timeouts.Hello, verb+name)
	extended := err == nil && !reply.Permanent()
	if err == nil && !extended && !s.over && !s.lmtp {
		second, helloErr := s.ask(mail.PhaseHello, s.timeouts.Hello, "HELO "+name)
		if helloErr == nil || ctx.Err() != nil {
			reply, err = second, helloErr
		}
	}
	if err != nil || reply.Code/100 != 2 {
		return refused(mail.PhaseHello, reply, fault(ctx, err))
	}
	if extended && len(reply.Lines) > 1 {
		s.offers = parseOffers(reply.Lines[1:])
		s.offers.pipelining = s.offers.pipelining && !s.lockstep
	}
	return Answer{}
}

func (s *Session) startTLS(ctx context.Context, o Options) Answer {
	must := o.TLS != mail.TLSMay && o.TLS != "" // a word that we do not know, too
	if !s.offers.startTLS {
		if must {
			return Answer{Phase: mail.PhaseStartTLS, Err: ErrNoTLS}
		}
		return Answer{}
	}
	reply, err := s.ask(mail.PhaseStartTLS, s.timeouts.StartTLS, "STARTTLS")
	switch {
	case err != nil || reply.Code == 421 || reply.Positive() && reply.Code != 220 || s.over:
		// RFC 3207 §4: only 220 says that TLS begins, and who knows what begins
		// behind another positive reply.
		return refused(mail.PhaseStartTLS, reply, fault(ctx, err))
	case reply.Transient() && !must:
		return Answer{Phase: mail.PhaseStartTLS, Reply: reply}
	case reply.Code/100 != 2 && must:
		return Answer{Phase: mail.PhaseStartTLS, Reply: reply, Err: ErrNoTLS}
	case reply.Code/100 != 2:
		return Answer{}
	}
	if failed := s.secureBy(ctx, o); failed.Phase != "" {
		return failed
	}
	// RFC 3207 §4.2: what the host said before is worth nothing.
	failed := s.sayHello(ctx, o.Hello)
	if failed.Err != nil {
		// RFC 8446 §4.4: in TLS 1.3 the last word of the handshake is ours, so a
		// host that does not want it so says that now, or says nothing.
		failed.Phase = mail.PhaseStartTLS
	}
	return failed
}

// secureBy begins TLS. The zero Answer is success.
func (s *Session) secureBy(ctx context.Context, o Options) Answer {
	err := s.handshake(ctx, o)
	if err == nil {
		return Answer{}
	}
	var untrusted *tls.CertificateVerificationError
	if errors.As(err, &untrusted) {
		err = fmt.Errorf("%w: %w", ErrUntrusted, err)
	}
	return Answer{Phase: mail.PhaseStartTLS, Err: fmt.Errorf("%w: %w", ErrHandshake, fault(ctx, err))}
}

func (s *Session) handshake(ctx context.Context, o Options) error {
	config := &tls.Config{MinVersion: tls.VersionTLS12}
	if o.TLSConfig != nil {
		config = o.TLSConfig.Clone()
	}
	config.ServerName = strings.Trim(strings.TrimPrefix(s.host.Name, "[IPv6:"), "[]")
	// Without a policy that vouches for the name, a certificate proves
	// nothing: RFC 7435 §3. Any is better than plaintext.
	switch o.TLS {
	case mail.TLSMay, mail.TLSEncrypt, "":
		config.InsecureSkipVerify = true
		config.MinVersion, config.CipherSuites = tls.VersionTLS10, wideSuites
		if o.Witness {
			config.VerifyConnection = func(state tls.ConnectionState) error {
				s.distrust = verifyByRoots(state, config)
				return nil
			}
		}
	case mail.TLSDANE:
		config.InsecureSkipVerify = true // verifyDANE does it, after resumption too
		names := o.Names
		if len(names) == 0 {
			names = []string{config.ServerName}
		}
		config.ServerName = names[0] // RFC 7672 §8.1
		config.VerifyConnection = func(state tls.ConnectionState) error {
			if err := verifyDANE(state, o.TLSA, names); err != nil {
				return fmt.Errorf("%w: %w", ErrUntrusted, err)
			}
			return nil
		}
	}
	if o.SmallHello {
		config.CurvePreferences = []tls.CurveID{tls.X25519, tls.CurveP256, tls.CurveP384, tls.CurveP521}
		config.ClientSessionCache = nil // a ticket makes it larger
	}
	c := tls.Client(s.tcp, config)
	began := time.Now()
	err := s.tcp.SetDeadline(began.Add(s.timeouts.StartTLS))
	if err == nil {
		err = c.HandshakeContext(ctx)
	}
	s.saw(Step{Phase: mail.PhaseStartTLS, Err: err, Took: time.Since(began)})
	if err != nil {
		return err
	}
	s.verified = o.TLS == mail.TLSVerify || o.TLS == mail.TLSDANE
	state := c.ConnectionState()
	s.secure = strings.ReplaceAll(tls.VersionName(state.Version), " ", "") + " " + tls.CipherSuiteName(state.CipherSuite)
	// Octets that came in plaintext behind the 220 are dropped here: taken
	// for replies to what we say inside TLS they would be an attack.
	s.speakOn(c)
	return nil
}

// wideSuites are for hosts that may be anybody: what such TLS keeps out is who
// only listens, and old versions and RSA key exchange do so better than
// plaintext. RC4 and 3DES are not among them. Postfix has the same (smtp_tls_ciphers
// = medium, smtp_tls_protocols = >=TLSv1), and the key exchanges over finite
// fields that crypto/tls does not know.
var wideSuites = func() (ids []uint16) {
	for _, s := range tls.CipherSuites() {
		ids = append(ids, s.ID)
	}
	for _, s := range tls.InsecureCipherSuites() {
		if strings.Contains(s.Name, "_AES_") {
			ids = append(ids, s.ID)
		}
	}
	return ids
}()

// verifyByRoots verifies a certificate as crypto/tls does.
func verifyByRoots(state tls.ConnectionState, config *tls.Config) error {
	if len(state.PeerCertificates) == 0 {
		return errNoCertificate
	}
	o := x509.VerifyOptions{Roots: config.RootCAs, DNSName: config.ServerName, Intermediates: x509.NewCertPool()}
	for _, c := range state.PeerCertificates[1:] {
		o.Intermediates.AddCert(c)
	}
	_, err := state.PeerCertificates[0].Verify(o)
	return err
}

// refused makes the Answer of a reply that ends a session before its first
// transaction, or of the error in its place.
func refused(phase mail.Phase, reply mail.Reply, err error) Answer {
	if err == nil && reply.Positive() {
		err = ErrOutOfStep
	}
	return Answer{Phase: phase, Reply: reply, Err: err}
}
