package main

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"syscall"
	"time"

	"github.com/shoal-engine/shoal/integration/lab"
)

const (
	// tlsSize is what moves between the two hosts.
	tlsSize = 1 << 30
	// memoryGoal is what a transfer may add to the memory of the fetching agent, in MiB.
	memoryGoal = 64
)

// journeys are runs of one way to move tlsSize bytes.
type journeys struct {
	seconds, cpu []float64 // cpu of both ends together, in seconds
}

func (j *journeys) rate() float64    { return tlsSize / (1 << 20) / median(j.seconds) }
func (j *journeys) perGiB() float64  { return median(j.cpu) * (1 << 30) / tlsSize }
func (j *journeys) add(s, c float64) { j.seconds, j.cpu = append(j.seconds, s), append(j.cpu, c) }
func (j *journeys) latest() (s, c float64) {
	return j.seconds[len(j.seconds)-1], j.cpu[len(j.cpu)-1]
}

// tls copies an image of noise from one host to another over an unshaped link, and sends
// as many bytes over one plain TLS 1.3 stream between the same two networks, in turn:
// once from memory to nowhere, once from a file to a file, hashed and synced. The
// agents' exchange of blobs is also measured by itself, from memory to nowhere.
func (b *bench) tls(ctx context.Context) (err error) {
	archive := filepath.Join(b.tmp, "noise.tar")
	if err := b.noiseImage(archive, "noise:1", tlsSize); err != nil {
		return err
	}
	defer os.Remove(archive)
	l, err := lab.Up(ctx, "/run/shoal-bench", lab.Options{Nodes: 2, Binary: b.shoal, Out: os.Stderr})
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, l.Down(context.WithoutCancel(ctx))) }()
	if err := b.must(ctx, l.NodeSocket(1), "load", "-q", "-i", archive); err != nil {
		return err
	}
	var whole, blob, exchange, bare, kept journeys
	idle, err := weighed([]int{l.Pid(1), l.Pid(2)})
	if err != nil {
		return err
	}
	for i := range b.runs {
		// In turns, and before what writes: disks and memory are busy for a while after that.
		pair := []func() error{
			func() error { return b.exchangeOnce(ctx, l, &exchange) },
			func() error { return b.plainOnce(ctx, l, "-", "-", &bare) },
		}
		if err := errors.Join(pair[i%2](), pair[1-i%2]()); err != nil {
			return err
		}
		tell(i, "exchange", &exchange)
		tell(i, "plain", &bare)
	}
	var most [2]float64
	for i := range min(b.runs, 5) {
		m, err := b.copyOnce(ctx, l, &whole, &blob)
		if err != nil {
			return err
		}
		for k := range m {
			most[k] = max(most[k], m[k])
		}
		if err := b.plainOnce(ctx, l, archive, filepath.Join(b.tmp, "received"), &kept); err != nil {
			return err
		}
		tell(i, "copy", &whole)
		tell(i, "plain, kept", &kept)
	}
	note := fmt.Sprintf("median of %d; memory to nowhere: of %d", len(whole.seconds), len(bare.seconds))
	b.add(figure{"1 GiB blob to another host, the exchange alone, memory to nowhere, unshaped", "MiB/s", exchange.rate(), bare.rate(), note + "; what agents do less store and image; peer: one plain TLS 1.3 stream, memory to nowhere"})
	b.add(figure{"processor time of both ends, the exchange alone", "s/GiB", exchange.perGiB(), bare.perGiB(), "the same"})
	b.add(figure{"1 GiB image to another host, image copy until it is unpacked, unshaped", "MiB/s", whole.rate(), bare.rate(), note + "; peer: one plain TLS 1.3 stream, memory to nowhere"})
	b.add(figure{"the same, beside a stream that is also kept", "MiB/s", whole.rate(), kept.rate(), "peer: the stream read from a file, hashed, written to a file and synced"})
	b.add(figure{"of it, the layer until it is verified and on disk", "MiB/s", blob.rate(), bare.rate(), "as the fetching agent's log says, which unpacks meanwhile; peer: memory to nowhere"})
	b.add(figure{"the same, beside a stream that is also kept", "MiB/s", blob.rate(), kept.rate(), ""})
	b.add(figure{"processor time of both ends, image copy", "s/GiB", whole.perGiB(), bare.perGiB(), "both agents; peer: memory to nowhere"})
	b.add(figure{"the same, beside a stream that is also kept", "s/GiB", whole.perGiB(), kept.perGiB(), ""})
	b.add(figure{"memory of the fetching agent over idle, at most", "MiB", most[1] - idle[1], memoryGoal, "anonymous memory, looked at every 100 ms, the worst run; idle is before the first; peer: the goal"})
	b.add(figure{"memory of the serving agent over idle, at most", "MiB", most[0] - idle[0], memoryGoal, "the same"})
	return nil
}

// tell shows the latest run of one way.
func tell(run int, name string, of *journeys) {
	s, c := of.latest()
	fmt.Fprintf(os.Stderr, "run %d, %s: %.2f s, %.2f s of processors\n", run+1, name, s, c)
}

// copyOnce copies the image to node 2 and removes it there. It returns the most
// that the two agents had in memory meanwhile.
func (b *bench) copyOnce(ctx context.Context, l *lab.Lab, whole, blob *journeys) ([]float64, error) {
	syscall.Sync()
	agents := []int{l.Pid(1), l.Pid(2)}
	spent, err := processor(agents...)
	if err != nil {
		return nil, err
	}
	stop := watch(agents...)
	begin := time.Now()
	err = b.copyTo(ctx, l, "noise:1", "node2")
	took := time.Since(begin).Seconds()
	now, unread := processor(agents...)
	most, unwatched := stop()
	if err := errors.Join(err, unread, unwatched); err != nil {
		return nil, err
	}
	whole.add(took, now-spent)
	fetched, err := lastFetch(l.Log(2))
	if err != nil {
		return nil, err
	}
	blob.add(fetched.Seconds(), now-spent)
	return most, b.forget(ctx, l, 2, "noise:1")
}

// copyTo has node 1 copy an image to another.
func (b *bench) copyTo(ctx context.Context, l *lab.Lab, ref, node string) error {
	out, err := exec.CommandContext(ctx, b.shoal, "-H", "unix://"+l.Socket(1), "image", "copy", ref, node).CombinedOutput()
	if err != nil {
		return fmt.Errorf("shoal image copy %s %s: %w: %s", ref, node, err, out)
	}
	return nil
}

// forget removes an image from one node and waits until its disk has the space back.
func (b *bench) forget(ctx context.Context, l *lab.Lab, node int, ref string) error {
	if err := b.must(ctx, l.NodeSocket(node), "rmi", "-f", ref); err != nil {
		return err
	}
	return emptied(ctx, filepath.Join(l.Data(node), "images", "trash"))
}

// lastFetch is how long the largest blob took that an agent fetched last.
func lastFetch(log string) (time.Duration, error) {
	raw, err := os.ReadFile(log)
	if err != nil {
		return 0, err
	}
	all := regexp.MustCompile(`msg="blob fetched" .*bytes=\d{10,} took=(\S+)`).FindAllSubmatch(raw, -1)
	if len(all) == 0 {
		return 0, fmt.Errorf("%s tells of no large blob", log)
	}
	return time.ParseDuration(string(all[len(all)-1][1]))
}

// plainOnce sends over a plain stream from node 1 to node 2.
func (b *bench) plainOnce(ctx context.Context, l *lab.Lab, from, to string, out *journeys) error {
	syscall.Sync()
	s, err := b.stream(ctx, l, 1, 2, tlsSize, from, to)
	if err != nil {
		return err
	}
	sent, err := s.wait()
	if err != nil {
		return err
	}
	out.add(sent.Seconds, sent.CPU)
	if to == "-" {
		return nil
	}
	return os.Remove(to)
}

// plain is a plain stream under way.
type plain struct {
	sender, receiver *exec.Cmd
	sent, received   io.Reader
}

// stream begins to send from one node to another.
func (b *bench) stream(ctx context.Context, l *lab.Lab, source, target int, size int64, from, to string) (*plain, error) {
	address, n := fmt.Sprintf("%s:7000", lab.Address(target)), fmt.Sprint(size)
	p := &plain{receiver: b.self(ctx, l, target, "receive", address, n, to), sender: b.self(ctx, l, source, "send", address, n, from)}
	var err error
	if p.received, err = startReady(p.receiver); err != nil {
		return nil, err
	}
	if p.sent, err = p.sender.StdoutPipe(); err == nil {
		err = p.sender.Start()
	}
	if err != nil {
		_ = p.receiver.Process.Kill()
		return nil, errors.Join(err, p.receiver.Wait())
	}
	return p, nil
}

// wait returns what the sender says, with the processor time of both.
func (p *plain) wait() (moved, error) {
	var sent, received moved
	err := errors.Join(json.NewDecoder(p.sent).Decode(&sent), json.NewDecoder(p.received).Decode(&received), p.sender.Wait(), p.receiver.Wait())
	sent.CPU += received.CPU
	return sent, err
}

// end breaks it off.
func (p *plain) end() {
	for _, cmd := range []*exec.Cmd{p.sender, p.receiver} {
		_ = cmd.Process.Kill()
		_ = cmd.Wait() // says that it was killed
	}
}

// startReady starts a helper and waits until it listens. The rest of its output can be
// read from what is returned.
func startReady(cmd *exec.Cmd) (io.Reader, error) {
	out, err := cmd.StdoutPipe()
	if err == nil {
		err = cmd.Start()
	}
	if err != nil {
		return nil, err
	}
	r := bufio.NewReader(out)
	if line, err := r.ReadString('\n'); err != nil || line != "ready\n" {
		_ = cmd.Process.Kill()
		return nil, errors.Join(fmt.Errorf("%s: does not listen", cmd), err, cmd.Wait())
	}
	return r, nil
}
