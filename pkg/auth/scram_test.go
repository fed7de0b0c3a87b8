package auth_test

import (
	"bytes"
	"crypto/hmac"
	"crypto/pbkdf2"
	"crypto/sha256"
	"encoding/base64"
	"errors"
	"fmt"
	"strconv"
	"strings"
	"testing"

	"github.com/postrider/postrider/pkg/auth"
)

// client is the client's side of RFC 5802, written from the RFC.
type client struct {
	header   string // gs2-header
	exporter []byte
	user     string
	password string

	firstBare, authMessage string
	salted                 []byte
}

func (c *client) first() string {
	c.firstBare = "n=" + c.user + ",r=fyko+d2lbbFgONRv9qkxdawL"
	return c.header + c.firstBare
}

func mac(key []byte, text string) []byte {
	m := hmac.New(sha256.New, key)
	m.Write([]byte(text))
	return m.Sum(nil)
}

func (c *client) final(t *testing.T, serverFirst string) string {
	t.Helper()
	field := map[byte]string{}
	for part := range strings.SplitSeq(serverFirst, ",") {
		field[part[0]] = part[2:]
	}
	salt, err := base64.StdEncoding.DecodeString(field['s'])
	if err != nil {
		t.Fatal(err)
	}
	iterations, err := strconv.Atoi(field['i'])
	if err != nil {
		t.Fatal(err)
	}
	if c.salted, err = pbkdf2.Key(sha256.New, c.password, salt, iterations, 32); err != nil {
		t.Fatal(err)
	}
	binding := base64.StdEncoding.EncodeToString(append([]byte(c.header), c.exporter...))
	withoutProof := "c=" + binding + ",r=" + field['r']
	c.authMessage = c.firstBare + "," + serverFirst + "," + withoutProof
	proof := mac(c.salted, "Client Key")
	stored := sha256.Sum256(proof)
	for i, b := range mac(stored[:], c.authMessage) {
		proof[i] ^= b
	}
	return withoutProof + ",p=" + base64.StdEncoding.EncodeToString(proof)
}

func (c *client) verifies(serverFinal string) bool {
	return serverFinal == "v="+base64.StdEncoding.EncodeToString(mac(mac(c.salted, "Server Key"), c.authMessage))
}

func TestExchange(t *testing.T) {
	keys, err := auth.NewSCRAMKeys("pencil")
	if err != nil {
		t.Fatal(err)
	}
	lookUp := errors.New("look-up")
	exporter := bytes.Repeat([]byte{9}, 32)
	const plus = "p=tls-exporter,,"
	for _, c := range []struct {
		name    string
		client  client
		binding auth.Binding
		want    error
	}{
		{name: "right", client: client{header: "n,,", user: "app", password: "pencil"}},
		{name: "escaped name", client: client{header: "n,,", user: "a=2Cp=3Dp", password: "pencil"}},
		{name: "wrong password", client: client{header: "n,,", user: "app", password: "Pencil"}, want: auth.ErrProof},
		{name: "unknown user", client: client{header: "n,,", user: "nobody", password: "pencil"}, want: auth.ErrProof},
		{name: "look-up fails", client: client{header: "n,,", user: "fails", password: "pencil"}, want: lookUp},
		{name: "for itself", client: client{header: "n,a=app,", user: "app", password: "pencil"}},
		{name: "for another", client: client{header: "n,a=root,", user: "app", password: "pencil"}, want: auth.ErrProof},
		{name: "plus", client: client{header: plus, exporter: exporter, user: "app", password: "pencil"}, binding: auth.Binding{Exporter: exporter, Required: true}},
		{name: "other channel", client: client{header: plus, exporter: make([]byte, 32), user: "app", password: "pencil"},
			binding: auth.Binding{Exporter: exporter, Required: true}, want: auth.ErrProof},
		{name: "plus without binding", client: client{header: "n,,", user: "app", password: "pencil"},
			binding: auth.Binding{Exporter: exporter, Required: true}, want: auth.ErrExchange},
		{name: "plus not used", client: client{header: "n,,", user: "app", password: "pencil"}, binding: auth.Binding{Exporter: exporter}},
		{name: "plus was hidden from the client", client: client{header: "y,,", user: "app", password: "pencil"},
			binding: auth.Binding{Exporter: exporter}, want: auth.ErrExchange},
		{name: "plus not offered", client: client{header: plus, exporter: exporter, user: "app", password: "pencil"}, want: auth.ErrExchange},
		{name: "other binding", client: client{header: "p=tls-unique,,", exporter: exporter, user: "app", password: "pencil"},
			binding: auth.Binding{Exporter: exporter, Required: true}, want: auth.ErrExchange},
	} {
		t.Run(c.name, func(t *testing.T) {
			e, err := auth.NewExchange(c.binding, func(user string) (auth.SCRAMKeys, error) {
				switch user {
				case "app", "a,p=p":
					return keys, nil
				case "fails":
					return auth.SCRAMKeys{}, lookUp
				}
				return auth.Decoy([]byte("secret"), user), nil
			})
			if err != nil {
				t.Fatal(err)
			}
			reply, done, err := e.Step(c.client.first())
			if done {
				t.Fatal("done after the first message")
			}
			if err == nil {
				reply, done, err = e.Step(c.client.final(t, reply))
			}
			if !errors.Is(err, c.want) || (c.want == nil) != done {
				t.Fatalf("%q, done %v, %v, want %v", reply, done, err, c.want)
			}
			if c.want == nil && !c.client.verifies(reply) {
				t.Errorf("the server does not prove itself: %q", reply)
			}
			if _, again, err := e.Step(c.client.first()); err == nil || again {
				t.Error("an exchange went on after its end")
			}
		})
	}
}

func TestExchangeWithoutWhatItNeeds(t *testing.T) {
	if _, err := auth.NewExchange(auth.Binding{Required: true}, nil); err == nil {
		t.Error("channel binding without a channel")
	}
}

func TestMalformedExchange(t *testing.T) {
	keys, err := auth.NewSCRAMKeys("pencil")
	if err != nil {
		t.Fatal(err)
	}
	for _, first := range []string{"", "n", "n,,", "n,,n=app", "x,,n=app,r=1", "n,,n==,r=1", "n,,m=1,n=app,r=1", "n,,n=app,r=", "\xff\xfe"} {
		e, err := auth.NewExchange(auth.Binding{}, func(string) (auth.SCRAMKeys, error) { return keys, nil })
		if err != nil {
			t.Fatal(err)
		}
		if reply, done, err := e.Step(first); done || (err != nil && !errors.Is(err, auth.ErrExchange)) {
			t.Errorf("%q: %q, %v, %v", first, reply, done, err)
		}
		for _, final := range []string{"", "c=biws", "c=biws,r=x,p=AAAA", "c=!,r=x,p=x", strings.Repeat(",", 100)} {
			if reply, done, err := e.Step(final); done || err == nil {
				t.Errorf("%q, %q: %q, %v, %v", first, final, reply, done, err)
			}
		}
	}
}

// Nobody can tell a user that does not exist by its salt.
func TestDecoy(t *testing.T) {
	a := auth.Decoy([]byte("secret"), "Nobody")
	keys, err := auth.NewSCRAMKeys("pencil")
	if err != nil {
		t.Fatal(err)
	}
	if len(a.Salt) != len(keys.Salt) || a.Iterations != keys.Iterations || len(a.StoredKey) != 32 || len(a.ServerKey) != 32 {
		t.Errorf("decoy %+v stands out beside %+v", a, keys)
	}
	for name, b := range map[string]auth.SCRAMKeys{
		"other user":   auth.Decoy([]byte("secret"), "nobodx"),
		"other secret": auth.Decoy([]byte("Secret"), "nobody"),
	} {
		if bytes.Equal(a.Salt, b.Salt) || bytes.Equal(a.StoredKey, b.StoredKey) {
			t.Errorf("%s: the same keys", name)
		}
	}
	if b := auth.Decoy([]byte("secret"), "nobody"); fmt.Sprint(a) != fmt.Sprint(b) {
		t.Error("the keys of a user change")
	}
}

func FuzzExchange(f *testing.F) {
	keys, err := auth.NewSCRAMKeys("pencil")
	if err != nil {
		f.Fatal(err)
	}
	f.Add("n,,n=app,r=fyko", "c=biws,r=fyko,p=AAAA")
	f.Add("p=tls-exporter,a=x,n=a=2Cb,r=1,e=2", "c=,r=,p=")
	f.Fuzz(func(t *testing.T, first, final string) {
		for _, binding := range []auth.Binding{{}, {Exporter: make([]byte, 32), Required: true}} {
			e, err := auth.NewExchange(binding, func(string) (auth.SCRAMKeys, error) { return keys, nil })
			if err != nil {
				t.Fatal(err)
			}
			if _, done, _ := e.Step(first); done {
				t.Fatalf("%q was enough", first)
			}
			if _, done, err := e.Step(final); done || err == nil {
				t.Fatalf("%q, %q: in without the password", first, final)
			}
		}
	})
}
