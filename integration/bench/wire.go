package main

import (
	"context"
	"crypto/ed25519"
	"crypto/rand"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"hash"
	"io"
	"math/big"
	"net"
	"os"
	"strconv"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sync/errgroup"
)

// wireBlock is what a plain stream is read and written by.
const wireBlock = 256 << 10

// moved is what one end of a plain stream says of it.
type moved struct {
	Seconds float64 // from the handshake until the receiver has all
	CPU     float64 // seconds that this end's process spent on processors meanwhile
}

// meter measures a moved.
type meter struct {
	start time.Time
	cpu   float64
}

func newMeter() meter { return meter{time.Now(), ownProcessor()} }

func (m meter) print() error {
	return json.NewEncoder(os.Stdout).Encode(moved{time.Since(m.start).Seconds(), ownProcessor() - m.cpu})
}

// ownProcessor is what this process has spent on processors, in seconds.
func ownProcessor() float64 {
	var u syscall.Rusage
	_ = syscall.Getrusage(syscall.RUSAGE_SELF, &u) // fails on bad arguments only
	return float64(u.Utime.Nano()+u.Stime.Nano()) / 1e9
}

// receive accepts one TLS 1.3 stream at an address and reads a number of bytes from it;
// if a file is named, and not "-", they are hashed and written there, and synced.
func receive(ctx context.Context, args []string) error {
	size, err := strconv.ParseInt(args[1], 10, 64)
	if err != nil {
		return err
	}
	sink := io.Discard
	var file *os.File
	var sum hash.Hash
	if args[2] != "-" {
		if file, err = os.Create(args[2]); err != nil {
			return err
		}
		defer file.Close()
		sum = sha256.New()
		sink = io.MultiWriter(sum, file)
	}
	conn, err := acceptOne(ctx, args[0])
	if err != nil {
		return err
	}
	defer conn.Close()
	m := newMeter()
	buf := make([]byte, wireBlock)
	for left := size; left > 0; {
		n, err := io.ReadFull(conn, buf[:min(left, wireBlock)])
		if err != nil {
			return err
		}
		if _, err := sink.Write(buf[:n]); err != nil {
			return err
		}
		left -= int64(n)
	}
	if file != nil {
		sum.Sum(nil)
		if err := file.Sync(); err != nil {
			return err
		}
	}
	if _, err := conn.Write([]byte{1}); err != nil {
		return err
	}
	return m.print()
}

// acceptOne says "ready" and waits for a stream.
func acceptOne(ctx context.Context, addr string) (*tls.Conn, error) {
	pub, key, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		return nil, err
	}
	template := &x509.Certificate{SerialNumber: big.NewInt(1)}
	cert, err := x509.CreateCertificate(rand.Reader, template, template, pub, key)
	if err != nil {
		return nil, err
	}
	l, err := net.Listen("tcp", addr)
	if err != nil {
		return nil, err
	}
	defer l.Close()
	defer context.AfterFunc(ctx, func() { l.Close() })()
	fmt.Println("ready")
	raw, err := l.Accept()
	if err != nil {
		return nil, err
	}
	conn := tls.Server(raw, &tls.Config{
		MinVersion:   tls.VersionTLS13,
		Certificates: []tls.Certificate{{Certificate: [][]byte{cert}, PrivateKey: key}},
	})
	if err := conn.HandshakeContext(ctx); err != nil {
		return nil, errors.Join(err, conn.Close())
	}
	return conn, nil
}

// send opens a TLS 1.3 stream to an address and writes a number of bytes to it, from the
// beginning of a file or, if that is "-", from memory.
func send(ctx context.Context, args []string) error {
	size, err := strconv.ParseInt(args[1], 10, 64)
	if err != nil {
		return err
	}
	var source io.Reader
	if args[2] != "-" {
		f, err := os.Open(args[2])
		if err != nil {
			return err
		}
		defer f.Close()
		source = f
	}
	d := tls.Dialer{Config: &tls.Config{MinVersion: tls.VersionTLS13, InsecureSkipVerify: true}} //nolint:gosec // it measures speed
	conn, err := d.DialContext(ctx, "tcp", args[0])
	if err != nil {
		return err
	}
	defer conn.Close()
	m := newMeter()
	buf := make([]byte, wireBlock)
	_, _ = rand.Read(buf) // never fails
	for left := size; left > 0; {
		part := buf[:min(left, wireBlock)]
		if source != nil {
			if _, err := io.ReadFull(source, part); err != nil {
				return err
			}
		}
		if _, err := conn.Write(part); err != nil {
			return err
		}
		left -= int64(len(part))
	}
	if _, err := io.ReadFull(conn, buf[:1]); err != nil {
		return err
	}
	return m.print()
}

// rallyEvery is how often a message goes to and fro, and rallySize what it has.
const (
	rallyEvery = 20 * time.Millisecond
	rallySize  = 100
)

// echo returns what comes over TCP connections to an address, until ctx ends.
func echo(ctx context.Context, args []string) error {
	l, err := net.Listen("tcp", args[0])
	if err != nil {
		return err
	}
	defer l.Close()
	defer context.AfterFunc(ctx, func() { l.Close() })()
	fmt.Println("ready")
	var wg sync.WaitGroup
	defer wg.Wait()
	for {
		conn, err := l.Accept()
		if ctx.Err() != nil {
			return nil
		}
		if err != nil {
			return err
		}
		wg.Go(func() {
			defer conn.Close()
			defer context.AfterFunc(ctx, func() { conn.Close() })()
			_, _ = io.Copy(conn, conn) // ends with the other side
		})
	}
}

// rally sends small messages over TCP to an echo for some seconds and prints how many
// milliseconds each was on its way, there and back.
func rally(ctx context.Context, args []string) error {
	seconds, err := strconv.ParseFloat(args[1], 64)
	if err != nil {
		return err
	}
	var d net.Dialer
	conn, err := d.DialContext(ctx, "tcp", args[0])
	if err != nil {
		return err
	}
	defer conn.Close()
	defer context.AfterFunc(ctx, func() { conn.Close() })()
	begin := time.Now()
	n := int(seconds / rallyEvery.Seconds())
	took := make([]float64, 0, n)
	g, ctx := errgroup.WithContext(ctx)
	g.Go(func() error {
		tick := time.NewTicker(rallyEvery)
		defer tick.Stop()
		for range n {
			select {
			case <-tick.C:
			case <-ctx.Done():
				return ctx.Err()
			}
			if _, err := conn.Write(binary.BigEndian.AppendUint64(make([]byte, rallySize-8, rallySize), uint64(time.Since(begin)))); err != nil {
				return err
			}
		}
		return nil
	})
	g.Go(func() error {
		message := make([]byte, rallySize)
		for range n {
			if _, err := io.ReadFull(conn, message); err != nil {
				return err
			}
			sent := time.Duration(binary.BigEndian.Uint64(message[rallySize-8:]))
			took = append(took, milliseconds(time.Since(begin)-sent))
		}
		return nil
	})
	if err := g.Wait(); err != nil {
		return err
	}
	return json.NewEncoder(os.Stdout).Encode(took)
}

func milliseconds(d time.Duration) float64 { return float64(d) / float64(time.Millisecond) }
