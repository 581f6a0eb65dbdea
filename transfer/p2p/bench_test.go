package p2p

import (
	"crypto/ed25519"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"io"
	"math/big"
	"net"
	"testing"

	"github.com/stretchr/testify/require"
)

const block = 256 << 10

// BenchmarkThroughput compares one stream between two hosts with TLS alone.
func BenchmarkThroughput(b *testing.B) {
	b.Run("p2p", func(b *testing.B) {
		x, y, l := pair(b)
		from, to := streams(b, x, y, l)
		pump(b, from, to)
	})
	b.Run("tls", func(b *testing.B) {
		pub, key, err := ed25519.GenerateKey(rand.Reader)
		require.NoError(b, err)
		template := &x509.Certificate{SerialNumber: big.NewInt(1)}
		cert, err := x509.CreateCertificate(rand.Reader, template, template, pub, key)
		require.NoError(b, err)
		l, err := tls.Listen("tcp", "127.0.0.1:0", &tls.Config{Certificates: []tls.Certificate{{Certificate: [][]byte{cert}, PrivateKey: key}}})
		require.NoError(b, err)
		defer l.Close()
		accepted := make(chan net.Conn, 1)
		go func() {
			c, err := l.Accept()
			if err == nil {
				err = c.(*tls.Conn).Handshake()
			}
			if err != nil {
				b.Error(err)
			}
			accepted <- c
		}()
		from, err := tls.Dial("tcp", l.Addr().String(), &tls.Config{InsecureSkipVerify: true}) // the same machine, for speed only
		require.NoError(b, err)
		pump(b, from, <-accepted)
	})
}

func pump(b *testing.B, from, to net.Conn) {
	b.SetBytes(block)
	done := make(chan error, 1)
	go func() {
		buf := make([]byte, block)
		for range b.N {
			if _, err := io.ReadFull(to, buf); err != nil {
				done <- err
				return
			}
		}
		done <- nil
	}()
	buf := make([]byte, block)
	b.ResetTimer()
	for range b.N {
		if _, err := from.Write(buf); err != nil {
			b.Fatal(err)
		}
	}
	require.NoError(b, <-done)
}
