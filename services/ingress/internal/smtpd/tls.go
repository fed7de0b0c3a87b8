package smtpd

import (
	"crypto/sha256"
	"crypto/tls"
	"errors"
	"log/slog"

	"github.com/postrider/postrider/pkg/smtp"
	"github.com/postrider/postrider/services/ingress/internal/access"
)

// mayStartTLS reports whether STARTTLS is offered.
func (s *session) mayStartTLS() bool { return s.server.tls != nil && s.tls == nil && !s.door.NoTLS }

// doStartTLS: RFC 3207 §4.
func (s *session) doStartTLS(command smtp.Command) {
	switch {
	case s.server.tls == nil, s.door.NoTLS:
		s.refuse(command.Verb, replyNotHere)
	case s.tls != nil:
		s.refuse(command.Verb, replyTLSAlready)
	case command.Args != "":
		s.refuse(command.Verb, replyNoArguments)
	case s.client.Hello == "" || !s.esmtp:
		s.refuse(command.Verb, replyEHLOFirst)
	case s.wire.talksFirst():
		// What came with the command came in the clear: somebody may want it
		// to be taken for a part of the secured session.
		s.end(replyTalkedBeforeTLS)
	default:
		s.reset()
		s.client.Hello, s.esmtp = "", false // RFC 3207 §4.2: all is forgotten
		s.recognise()
		s.wire.reply(replyStartTLS)
		s.secure()
	}
}

// secure makes the handshake. Without success the session is over: nothing
// may follow in the clear (RFC 3207 §4.1 leaves it to us).
func (s *session) secure() bool {
	state, err := s.wire.secure(s.server.tls)
	if err != nil {
		s.over = true
		s.server.metrics.handshake("failed")
		if !s.silent {
			slog.Info("TLS handshake failed", "client", s.client.Address, "error", err)
		}
		return false
	}
	s.tls = &state
	s.server.metrics.handshake(tls.VersionName(state.Version))
	s.certificate()
	return true
}

// certificate recognises the client by the certificate that it showed.
func (s *session) certificate() {
	chain := s.tls.PeerCertificates
	if len(chain) == 0 || s.server.access == nil {
		return
	}
	id, err := s.server.access.Certificate(s.server.ctx, s.client.Address, access.Certificate{
		SHA256: sha256.Sum256(chain[0].Raw), Names: s.server.certs.Names(chain),
	})
	switch {
	case err == nil:
		s.id = id
	case errors.Is(err, access.ErrRefused): // as without a certificate
	default:
		s.server.lookups.Failed("client certificate not looked up", err, "client", s.client.Address)
	}
}
