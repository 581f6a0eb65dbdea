package agent

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"math/big"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

// certificate makes one, signed by parent or by itself, and its files.
func certificate(t *testing.T, dir, name string, parent *tls.Certificate) tls.Certificate {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	require.NoError(t, err)
	c := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: name}, NotAfter: time.Now().Add(time.Hour),
		IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)}, IsCA: parent == nil, BasicConstraintsValid: true,
	}
	signer, by := c, any(key)
	if parent != nil {
		signer, by = parent.Leaf, parent.PrivateKey
	}
	der, err := x509.CreateCertificate(rand.Reader, c, signer, &key.PublicKey, by)
	require.NoError(t, err)
	raw, err := x509.MarshalPKCS8PrivateKey(key)
	require.NoError(t, err)
	cert, keyPEM := filepath.Join(dir, name+".pem"), filepath.Join(dir, name+".key")
	require.NoError(t, os.WriteFile(cert, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}), 0o600))
	require.NoError(t, os.WriteFile(keyPEM, pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: raw}), 0o600))
	pair, err := tls.LoadX509KeyPair(cert, keyPEM)
	require.NoError(t, err)
	return pair
}

// TestOnlyClientsWithCertificates asks with the right certificate, none, and a stranger's.
func TestOnlyClientsWithCertificates(t *testing.T) {
	dir := t.TempDir()
	authority, stranger := certificate(t, dir, "ca", nil), certificate(t, dir, "stranger", nil)
	certificate(t, dir, "node", &authority)
	client, fake := certificate(t, dir, "client", &authority), certificate(t, dir, "fake", &stranger)
	file := func(name string) string { return filepath.Join(dir, name) }
	cfg, err := mutualTLS(file("node.pem"), file("node.key"), file("ca.pem"))
	require.NoError(t, err)
	srv := httptest.NewUnstartedServer(http.NotFoundHandler())
	srv.TLS = cfg
	srv.StartTLS()
	defer srv.Close()
	roots := x509.NewCertPool()
	roots.AddCert(authority.Leaf)
	get := func(certs ...tls.Certificate) error {
		c := http.Client{Transport: &http.Transport{DisableKeepAlives: true, TLSClientConfig: &tls.Config{
			RootCAs: roots, MinVersion: tls.VersionTLS13,
			// Sent whatever the server says it accepts.
			GetClientCertificate: func(*tls.CertificateRequestInfo) (*tls.Certificate, error) {
				return &append(certs, tls.Certificate{})[0], nil
			},
		}}}
		resp, err := c.Get(srv.URL)
		if err == nil {
			resp.Body.Close()
		}
		return err
	}
	require.NoError(t, get(client))
	require.Error(t, get())
	require.Error(t, get(fake))

	_, err = mutualTLS(file("node.pem"), file("node.key"), file("node.key"))
	require.ErrorContains(t, err, "has no certificate")
	_, err = mutualTLS(file("node.pem"), file("client.key"), file("ca.pem"))
	require.Error(t, err)
}
