package smtptest

import (
	"encoding/base64"
	"slices"
	"strings"

	"github.com/postrider/postrider/pkg/auth"
)

// auth answers AUTH: RFC 4954.
func (s *session) auth(arg string) {
	mechanism, initial, given := strings.Cut(arg, " ")
	mechanism = strings.ToUpper(mechanism)
	if s.secure == "" {
		s.complain("a secret over plaintext")
	}
	if !s.offersMechanism(mechanism) {
		s.complain("%s was not offered", mechanism)
	}
	s.act(Auth, "AUTH "+mechanism, "", func() int {
		user, ok := "", false
		switch mechanism {
		case "PLAIN":
			if !given {
				initial = s.challenge("")
			}
			words := strings.Split(decode(initial), "\x00")
			if len(words) == 3 {
				user, ok = words[1], s.knows(words[1], words[2])
			}
		case "LOGIN":
			user = decode(s.challenge("Username:"))
			ok = s.knows(user, decode(s.challenge("Password:")))
		case "SCRAM-SHA-256":
			user, ok = s.scram(initial)
		}
		if !ok {
			return s.reply(535, "5.7.8 wrong")
		}
		s.user = user
		return s.reply(235, "2.7.0 welcome")
	})
}

func (s *session) offersMechanism(name string) bool {
	return slices.ContainsFunc(s.offers, func(o string) bool {
		words := strings.Fields(strings.ToUpper(o))
		return len(words) > 0 && words[0] == "AUTH" && slices.Contains(words[1:], name)
	})
}

func (s *session) knows(user, password string) bool {
	want, known := s.server.script.Users[user]
	return known && want == password
}

// challenge asks for the next line of the exchange.
func (s *session) challenge(text string) string {
	s.reply(334, base64.StdEncoding.EncodeToString([]byte(text)))
	s.flush()
	line, _ := s.readLine()
	return line
}

func (s *session) scram(initial string) (user string, ok bool) {
	exchange, err := auth.NewExchange(auth.Binding{}, func(name string) (auth.SCRAMKeys, error) {
		user = name
		return auth.NewSCRAMKeys(s.server.script.Users[name])
	})
	if err != nil {
		s.server.note(err)
		return "", false
	}
	for said := decode(initial); ; {
		reply, done, err := exchange.Step(said)
		if err != nil {
			return user, false
		}
		said = decode(s.challenge(reply))
		if done {
			return user, true
		}
	}
}

func decode(text string) string {
	b, err := base64.StdEncoding.DecodeString(text)
	if err != nil {
		return ""
	}
	return string(b)
}
