package main

import (
	"archive/tar"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"github.com/shoal-engine/shoal/integration/lab"
)

const registryPort = 5099

// coldRun starts an image of 500 MB on a host that lacks it, until its first output: with
// Shoal, whose other host has it, and with a dockerd that pulls it from a registry on the
// other host. Hosts are two namespaces with an unshaped link; engines take turns.
func (b *bench) coldRun(ctx context.Context) (err error) {
	archive := filepath.Join(b.tmp, "talker.tar")
	if err := talker(archive); err != nil {
		return fmt.Errorf("make an image: %w", err)
	}
	defer os.Remove(archive)
	l, err := lab.Up(ctx, "/run/shoal-bench", lab.Options{Nodes: 2, Binary: b.shoal, Out: os.Stderr})
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, l.Down(context.WithoutCancel(ctx))) }()
	host, stop, err := b.registry(ctx, l, 1)
	if err != nil {
		return err
	}
	defer stop()
	ref := host + "/talker:1"
	push := b.on(ctx, l, 1, "skopeo", "copy", "-q", "--dest-tls-verify=false", "docker-archive:"+archive, "docker://"+ref)
	if err := push.Run(); err != nil {
		return fmt.Errorf("fill the registry: %w", err)
	}
	peer, err := b.startDockerdOn(ctx, l, 2, "--insecure-registry", host)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, peer.stop()) }()
	// One host of the cluster has pulled it, so its layers are the registry's.
	if err := b.must(ctx, l.NodeSocket(1), "pull", "-q", ref); err != nil {
		return err
	}
	if err := b.must(ctx, l.NodeSocket(1), "load", "-q", "-i", archive); err != nil {
		return err
	}
	var packed, loaded, theirs, pulls []float64
	for i := range min(b.runs, 5) {
		for _, ours := range []struct {
			ref  string
			took *[]float64
		}{{ref, &packed}, {"talker:1", &loaded}} {
			if err := b.coldShoal(ctx, l, ours.ref, ours.took); err != nil {
				return err
			}
		}
		if err := b.coldDocker(ctx, peer, ref, &theirs, &pulls); err != nil {
			return err
		}
		fmt.Fprintf(os.Stderr, "run %d: gzip %.2f s, uncompressed %.2f s, dockerd %.2f s, of which pull %.2f s\n", i+1, packed[i], loaded[i], theirs[i], pulls[i])
	}
	note := fmt.Sprintf("%d MB, %d files; median of %d; peer: docker pull from Debian's registry on the other host and docker run, of which pull %s s", treeBytes>>20, treeFiles, len(packed), number(median(pulls)))
	b.add(figure{"cold docker run until its first output, image of gzip layers", "s", median(packed), median(theirs), note})
	b.add(figure{"cold docker run until its first output, image that was loaded uncompressed", "s", median(loaded), median(theirs), "the same peer"})
	return nil
}

// talker makes the archive of an image that says hi: the tree, and busybox above it.
func talker(path string) error {
	big, err := writeLayer(path+".layer0", packings[0], tree)
	if err != nil {
		return err
	}
	defer os.Remove(big.file)
	small, err := writeLayer(path+".layer1", packings[0], func(w io.Writer) error {
		body, err := os.ReadFile("/bin/busybox")
		if err != nil {
			return err
		}
		t := tar.NewWriter(w)
		if err := t.WriteHeader(&tar.Header{Typeflag: tar.TypeReg, Name: "bin/busybox", Mode: 0o755, Size: int64(len(body))}); err != nil {
			return err
		}
		if _, err := t.Write(body); err != nil {
			return err
		}
		return t.Close()
	})
	if err != nil {
		return err
	}
	defer os.Remove(small.file)
	return saveArchive(path, "talker:1", []string{"/bin/busybox", "echo", "hi"}, big, small)
}

// registry runs Debian's registry in a node's network.
func (b *bench) registry(ctx context.Context, l *lab.Lab, node int) (host string, stop func(), err error) {
	dir := filepath.Join(b.tmp, "registry")
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return "", nil, err
	}
	host = fmt.Sprintf("%s:%d", lab.Address(node), registryPort)
	config := filepath.Join(dir, "config.yml")
	text := "version: 0.1\nlog: {level: error, accesslog: {disabled: true}}\n" +
		"storage: {filesystem: {rootdirectory: " + filepath.Join(dir, "data") + "}}\nhttp: {addr: '" + host + "'}\n"
	if err := os.WriteFile(config, []byte(text), 0o600); err != nil {
		return "", nil, err
	}
	ctx, cancel := context.WithCancel(ctx)
	cmd := b.on(ctx, l, node, "docker-registry", "serve", config)
	cmd.Stderr = nil // it calls every blob that it is asked for and lacks an error
	if err := cmd.Start(); err != nil {
		cancel()
		return "", nil, err
	}
	stop = func() {
		cancel()
		_ = cmd.Wait() // says that it was killed
	}
	tick := time.NewTicker(100 * time.Millisecond)
	defer tick.Stop()
	for deadline := time.Now().Add(20 * time.Second); time.Now().Before(deadline); <-tick.C {
		if b.on(ctx, l, node, "curl", "-s", "-o", "/dev/null", "-m", "2", "http://"+host+"/v2/").Run() == nil {
			return host, stop, nil
		}
	}
	stop()
	return "", nil, errors.New("docker-registry does not answer")
}

// coldShoal runs an image on node 2, which lacks it, and removes it there.
func (b *bench) coldShoal(ctx context.Context, l *lab.Lab, ref string, took *[]float64) error {
	syscall.Sync()
	t, err := firstOutput(b.cli(ctx, l.Socket(2), "run", "--rm", "-e", "constraint:node==node2", ref))
	if err != nil {
		return err
	}
	*took = append(*took, t.Seconds())
	return b.forget(ctx, l, 2, ref)
}

// coldDocker pulls an image, runs it and removes it.
func (b *bench) coldDocker(ctx context.Context, p *peer, ref string, took, pulls *[]float64) error {
	syscall.Sync()
	begin := time.Now()
	if err := b.must(ctx, p.socket, "pull", "-q", ref); err != nil {
		return err
	}
	pull := time.Since(begin)
	t, err := firstOutput(b.cli(ctx, p.socket, "run", "--rm", ref))
	if err != nil {
		return err
	}
	*took, *pulls = append(*took, (pull+t).Seconds()), append(*pulls, pull.Seconds())
	return b.must(ctx, p.socket, "rmi", "-f", ref)
}

// firstOutput is how long a command takes to say hi.
func firstOutput(cmd *exec.Cmd) (time.Duration, error) {
	out, err := cmd.StdoutPipe()
	if err != nil {
		return 0, err
	}
	var complaints bytes.Buffer
	cmd.Stderr = &complaints
	begin := time.Now()
	if err := cmd.Start(); err != nil {
		return 0, err
	}
	said := make([]byte, 2)
	_, err = io.ReadFull(out, said)
	took := time.Since(begin)
	if err := errors.Join(err, cmd.Wait()); err != nil || string(said) != "hi" {
		return 0, fmt.Errorf("%s: said %q, not hi: %w: %s", strings.Join(cmd.Args, " "), said, err, complaints.Bytes())
	}
	return took, nil
}
