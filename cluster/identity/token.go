package identity

import (
	"crypto/rand"
	"crypto/sha256"
	"crypto/subtle"
	"encoding/base64"
	"encoding/hex"
	"fmt"
	"strings"

	"github.com/shoal-engine/shoal/api"
)

// SecretSize is the length of Token.Secret.
const SecretSize = 32

const (
	tokenPrefix = "SHOAL-1-"
	sumSize     = 4
	// maxToken bounds the text of a token; with it what a decoder may allocate.
	maxToken = 16 << 10
	maxPeers = 32
	maxAddrs = 16
	maxField = 255 // its length is one byte
)

// PeerAddr is a node and where it can be reached.
type PeerAddr struct {
	ID    string   `json:"id"`
	Addrs []string `json:"addrs"`
}

// Token lets a node join a cluster: whom to ask, and what to say to be let in. Who has
// it can join, so it is a secret.
type Token struct {
	Cluster string
	Secret  []byte // SecretSize bytes
	Peers   []PeerAddr
}

// String is the token as text: "SHOAL-1-" and unpadded URL-safe base64 of
//
//	secret (32 bytes)
//	cluster ID, as one byte of length and the text
//	number of peers (1 byte), and for each:
//	    ID, as the cluster's; number of addresses (1 byte); each as the ID
//	the first 4 bytes of the SHA-256 of all that
//
// It is "" if the token couldn't be read back; see Validate.
func (t Token) String() string {
	if t.Validate() != nil {
		return ""
	}
	b := append([]byte(nil), t.Secret...)
	field := func(s string) { b = append(append(b, byte(len(s))), s...) }
	field(t.Cluster)
	b = append(b, byte(len(t.Peers)))
	for _, p := range t.Peers {
		field(p.ID)
		b = append(b, byte(len(p.Addrs)))
		for _, a := range p.Addrs {
			field(a)
		}
	}
	sum := sha256.Sum256(b)
	return tokenPrefix + base64.RawURLEncoding.EncodeToString(append(b, sum[:sumSize]...))
}

// Validate says what a token lacks or has too much of.
func (t Token) Validate() error {
	if len(t.Secret) != SecretSize {
		return api.InvalidArgument("join token: the secret has %d bytes instead of %d", len(t.Secret), SecretSize)
	}
	if t.Cluster == "" || len(t.Cluster) > maxField {
		return api.InvalidArgument("join token: the cluster's ID has %d bytes, 1 to %d are allowed", len(t.Cluster), maxField)
	}
	if len(t.Peers) == 0 || len(t.Peers) > maxPeers {
		return api.InvalidArgument("join token: %d peers, 1 to %d are allowed", len(t.Peers), maxPeers)
	}
	size := SecretSize + len(t.Cluster) + 2 + sumSize
	for _, p := range t.Peers {
		if p.ID == "" || len(p.ID) > maxField || len(p.Addrs) == 0 || len(p.Addrs) > maxAddrs {
			return api.InvalidArgument("join token: peer %q needs an ID of at most %d bytes and 1 to %d addresses", p.ID, maxField, maxAddrs)
		}
		size += len(p.ID) + 2
		for _, a := range p.Addrs {
			if a == "" || len(a) > maxField {
				return api.InvalidArgument("join token: address %q of peer %s: 1 to %d bytes are allowed", a, p.ID, maxField)
			}
			size += len(a) + 1
		}
	}
	if text := len(tokenPrefix) + base64.RawURLEncoding.EncodedLen(size); text > maxToken {
		return api.InvalidArgument("join token: it would have %d characters, at most %d are allowed: name fewer peers", text, maxToken)
	}
	return nil
}

// ParseToken reads a token's text. Errors are InvalidArgument and say what to do; they
// don't repeat the token.
func ParseToken(s string) (Token, error) {
	s = strings.TrimSpace(s)
	rest, ok := strings.CutPrefix(s, tokenPrefix)
	switch {
	case s == "":
		return Token{}, api.InvalidArgument("join token: it is empty: \"shoal token\" on a member of the cluster prints one")
	case len(s) > maxToken:
		return Token{}, api.InvalidArgument("join token: it has %d characters, at most %d are allowed", len(s), maxToken)
	case !ok && strings.HasPrefix(s, "SHOAL-"):
		return Token{}, api.InvalidArgument("join token: it is of another version than this program's %s…: use the same release on both nodes", tokenPrefix)
	case !ok:
		return Token{}, api.InvalidArgument("join token: it must begin with %s: copy the whole line that \"shoal token\" prints", tokenPrefix)
	}
	b, err := base64.RawURLEncoding.Strict().DecodeString(rest)
	if err != nil {
		return Token{}, api.InvalidArgument("join token: it has characters that don't belong, or lacks some: copy the whole line")
	}
	if len(b) < SecretSize+sumSize {
		return Token{}, api.InvalidArgument("join token: it is cut short: copy the whole line")
	}
	body, sum := b[:len(b)-sumSize], sha256.Sum256(b[:len(b)-sumSize])
	if subtle.ConstantTimeCompare(b[len(body):], sum[:sumSize]) != 1 {
		return Token{}, api.InvalidArgument("join token: its checksum doesn't match: it is cut short or mistyped, copy the whole line")
	}
	t, err := decodeToken(body)
	if err == nil {
		err = t.Validate()
	}
	if err != nil {
		return Token{}, api.InvalidArgument("join token: it can't be read: %w", err)
	}
	return t, nil
}

// decoder takes fields off a token's bytes; after an error it gives empty ones.
type decoder struct {
	b   []byte
	err error
}

func (d *decoder) take(n int) []byte {
	if d.err == nil && len(d.b) < n {
		d.err = fmt.Errorf("%d bytes are missing", n-len(d.b))
	}
	if d.err != nil {
		return make([]byte, n) // n is a byte or SecretSize
	}
	out := d.b[:n]
	d.b = d.b[n:]
	return out
}

func (d *decoder) field() string { return string(d.take(int(d.take(1)[0]))) }

func (d *decoder) count(most int) int {
	n := int(d.take(1)[0])
	if n > most && d.err == nil {
		d.err = fmt.Errorf("a list of %d, at most %d are allowed", n, most)
	}
	if d.err != nil {
		return 0
	}
	return n
}

func decodeToken(b []byte) (Token, error) {
	d := &decoder{b: b}
	t := Token{Secret: append([]byte(nil), d.take(SecretSize)...), Cluster: d.field()}
	for range d.count(maxPeers) {
		p := PeerAddr{ID: d.field()}
		for range d.count(maxAddrs) {
			p.Addrs = append(p.Addrs, d.field())
		}
		t.Peers = append(t.Peers, p)
	}
	if d.err == nil && len(d.b) > 0 {
		d.err = fmt.Errorf("%d bytes too many", len(d.b))
	}
	return t, d.err
}

// NewSecret makes the secret of a new token; putting it in place of the old one makes
// tokens given out before worthless.
func NewSecret() ([]byte, error) {
	b := make([]byte, SecretSize)
	if _, err := rand.Read(b); err != nil {
		return nil, fmt.Errorf("make a secret: %w", err)
	}
	return b, nil
}

// SameSecret compares what a joining node offers with the cluster's secret, in a time
// that doesn't depend on where they differ. An empty secret is never the same.
func SameSecret(offered, secret []byte) bool {
	return len(secret) == SecretSize && subtle.ConstantTimeCompare(offered, secret) == 1
}

// Fingerprint names a secret in logs without giving it away.
func Fingerprint(secret []byte) string {
	sum := sha256.Sum256(append([]byte("shoal secret "), secret...))
	return hex.EncodeToString(sum[:6])
}
