package identity

import (
	"bytes"
	"encoding/base64"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/containerd/errdefs"
	"github.com/stretchr/testify/require"
)

func TestKeyIsMadeOnce(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "new")
	key, err := Key(dir)
	require.NoError(t, err)
	again, err := Key(dir)
	require.NoError(t, err)
	require.Equal(t, key, again)
	st, err := os.Stat(filepath.Join(dir, keyFile))
	require.NoError(t, err)
	require.Equal(t, os.FileMode(0o600), st.Mode().Perm())
	left, err := os.ReadDir(dir)
	require.NoError(t, err)
	require.Len(t, left, 1, "no temporary files stay")
}

func TestKeyIsNeverMadeAnew(t *testing.T) {
	rsa := "-----BEGIN PRIVATE KEY-----\nMFQCAQAwEAYHKoZIzj0CAQYFK4EEAAoEPTA7AgEBBDQ=\n-----END PRIVATE KEY-----\n"
	for name, content := range map[string]string{
		"empty": "", "text": "hello", "other key": rsa, "huge": strings.Repeat("x", maxFileSize+1),
	} {
		t.Run(name, func(t *testing.T) {
			dir := t.TempDir()
			path := filepath.Join(dir, keyFile)
			require.NoError(t, os.WriteFile(path, []byte(content), 0o600))
			_, err := Key(dir)
			require.ErrorIs(t, err, errdefs.ErrDataLoss)
			require.ErrorContains(t, err, path)
			b, err := os.ReadFile(path)
			require.NoError(t, err)
			require.Equal(t, content, string(b))
		})
	}
	dir := t.TempDir()
	_, err := Key(dir)
	require.NoError(t, err)
	path := filepath.Join(dir, keyFile)
	require.NoError(t, os.Chmod(path, 0o640))
	_, err = Key(dir)
	require.ErrorIs(t, err, errdefs.ErrPermissionDenied)
	require.ErrorContains(t, err, "chmod 600 "+path)
	require.NoError(t, os.Remove(path))
	require.NoError(t, os.Mkdir(path, 0o700))
	_, err = Key(dir)
	require.ErrorContains(t, err, path)
}

func TestState(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "new")
	_, err := LoadState(dir)
	require.ErrorIs(t, err, errdefs.ErrNotFound)
	s, err := NewCluster("node1")
	require.NoError(t, err)
	s.Peers = []PeerAddr{{ID: "p", Addrs: []string{"/ip4/127.0.0.1/tcp/1"}}}
	require.NoError(t, s.Save(dir))
	got, err := LoadState(dir)
	require.NoError(t, err)
	require.Equal(t, s, got)

	path := filepath.Join(dir, stateFile)
	good, err := os.ReadFile(path)
	require.NoError(t, err)
	for name, bad := range map[string][]byte{
		"cut":     good[:len(good)/2],
		"flipped": bytes.Replace(good, []byte("node1"), []byte("node2"), 1),
		"version": bytes.Replace(good, []byte(`"version":1`), []byte(`"version":9`), 1),
		"empty":   {},
	} {
		require.NoError(t, os.WriteFile(path, bad, 0o600))
		_, err = LoadState(dir)
		require.ErrorIs(t, err, errdefs.ErrDataLoss, name)
		require.ErrorContains(t, err, path, name)
	}
	require.NoError(t, os.WriteFile(path, good, 0o600))
	require.NoError(t, os.Chmod(path, 0o644))
	_, err = LoadState(dir)
	require.ErrorIs(t, err, errdefs.ErrPermissionDenied)

	s.GossipKey = s.GossipKey[:5]
	require.ErrorIs(t, s.Save(dir), errdefs.ErrInvalidArgument)
	require.NoError(t, RemoveState(dir))
	require.NoError(t, RemoveState(dir))
	_, err = LoadState(dir)
	require.ErrorIs(t, err, errdefs.ErrNotFound)
}

func testToken(t testing.TB) Token {
	secret, err := NewSecret()
	require.NoError(t, err)
	return Token{Cluster: "c0ffee", Secret: secret, Peers: []PeerAddr{
		{ID: "12D3KooWA", Addrs: []string{"/ip4/10.0.0.1/tcp/7947", "/ip6/::1/tcp/7947"}},
		{ID: "12D3KooWB", Addrs: []string{"/ip4/10.0.0.2/tcp/7947"}},
	}}
}

func TestToken(t *testing.T) {
	want := testToken(t)
	text := want.String()
	require.True(t, strings.HasPrefix(text, "SHOAL-1-"))
	require.Less(t, len(text), 250, "it is to be pasted")
	got, err := ParseToken(" " + text + "\n")
	require.NoError(t, err)
	require.Equal(t, want, got)

	for name, bad := range map[string]struct{ text, teaches string }{
		"empty":         {"", "shoal token"},
		"other text":    {"swarm-token", "must begin with SHOAL-1-"},
		"newer version": {"SHOAL-2-" + text[8:], "same release"},
		"cut":           {text[:len(text)-3], "copy the whole line"},
		"cut hard":      {text[:12], "cut short"},
		"mistyped":      {strings.Replace(text, text[40:41], swap(text[40]), 1), "copy the whole line"},
		"bad character": {text[:20] + "!" + text[21:], "copy the whole line"},
		"huge":          {tokenPrefix + strings.Repeat("A", maxToken), "at most"},
	} {
		_, err := ParseToken(bad.text)
		require.ErrorIs(t, err, errdefs.ErrInvalidArgument, name)
		require.ErrorContains(t, err, bad.teaches, name)
		if len(bad.text) > 40 {
			require.NotContains(t, err.Error(), bad.text[10:40], name)
		}
	}
}

func swap(c byte) string {
	if c == 'A' {
		return "B"
	}
	return "A"
}

func TestTokenValidate(t *testing.T) {
	for name, spoil := range map[string]func(*Token){
		"no cluster":    func(t *Token) { t.Cluster = "" },
		"short secret":  func(t *Token) { t.Secret = t.Secret[:31] },
		"no peers":      func(t *Token) { t.Peers = nil },
		"many peers":    func(t *Token) { t.Peers = make([]PeerAddr, maxPeers+1) },
		"no addresses":  func(t *Token) { t.Peers[0].Addrs = nil },
		"long address":  func(t *Token) { t.Peers[0].Addrs[0] = strings.Repeat("x", 256) },
		"empty peer ID": func(t *Token) { t.Peers[0].ID = "" },
		"too much": func(t *Token) {
			for range maxPeers - 2 {
				t.Peers = append(t.Peers, PeerAddr{ID: "x", Addrs: strings.Split(strings.Repeat(strings.Repeat("y", 99)+" ", maxAddrs-1), " ")[:maxAddrs-1]})
			}
		},
	} {
		tok := testToken(t)
		spoil(&tok)
		require.ErrorIs(t, tok.Validate(), errdefs.ErrInvalidArgument, name)
		require.Empty(t, tok.String(), name)
	}
}

func TestSecrets(t *testing.T) {
	a, err := NewSecret()
	require.NoError(t, err)
	b, err := NewSecret()
	require.NoError(t, err)
	require.True(t, SameSecret(bytes.Clone(a), a))
	require.False(t, SameSecret(b, a))
	require.False(t, SameSecret(a[:31], a))
	require.False(t, SameSecret(nil, nil))
	require.NotEqual(t, Fingerprint(a), Fingerprint(b))
}

func FuzzParseToken(f *testing.F) {
	f.Add(testToken(f).String())
	f.Add("SHOAL-1-")
	f.Add("SHOAL-1-AAAA")
	f.Fuzz(func(t *testing.T, s string) {
		tok, err := ParseToken(s)
		if err != nil {
			require.ErrorIs(t, err, errdefs.ErrInvalidArgument)
			return
		}
		require.Equal(t, strings.TrimSpace(s), tok.String())
	})
}

// FuzzDecodeToken skips the checksum, which no fuzzer gets past.
func FuzzDecodeToken(f *testing.F) {
	b, err := base64.RawURLEncoding.DecodeString(testToken(f).String()[len(tokenPrefix):])
	require.NoError(f, err)
	f.Add(b[:len(b)-sumSize])
	f.Add([]byte{})
	f.Fuzz(func(t *testing.T, b []byte) {
		tok, err := decodeToken(b)
		if err == nil && tok.Validate() == nil {
			back, err := ParseToken(tok.String())
			require.NoError(t, err)
			require.Equal(t, tok, back)
		}
	})
}

func FuzzDecodeState(f *testing.F) {
	f.Add([]byte(`{"version":1,"checksum":"","state":{}}`))
	f.Fuzz(func(t *testing.T, b []byte) {
		if s, err := decodeState(b); err == nil {
			require.NoError(t, s.validate())
		}
	})
}
