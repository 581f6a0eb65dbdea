package daemon

import (
	"log/slog"
	"os"
	"strconv"
	"strings"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"github.com/shoal-engine/shoal/node/runtime/jsonlog"
	"github.com/shoal-engine/shoal/node/runtime/libcontainer"
	"github.com/shoal-engine/shoal/node/supervisor/wire"
)

// process is a running or ended process with its streams.
type process struct {
	lc   *libcontainer.Process
	ends ends
	hub  hub
	log  *jsonlog.Writer // nil keeps none
	warn *slog.Logger
	once bool // stdin ends with the first client that ends its own

	done chan struct{} // closed: exit is set, and all output was handed on
	exit wire.Exit
}

func newProcess(lc *libcontainer.Process, e ends, warn *slog.Logger) *process {
	if lc != nil && lc.Console != nil {
		e.console = lc.Console
	}
	return &process{lc: lc, ends: e, warn: warn, done: make(chan struct{})}
}

// run hands the process's output on and waits for its end, which finish completes.
func (p *process) run(finish func(*wire.Exit)) {
	var pool chunks
	var pumps sync.WaitGroup
	outputs := map[byte]*os.File{wire.Stdout: p.ends.stdout, wire.Stderr: p.ends.stderr}
	if p.ends.console != nil {
		outputs[wire.Stdout] = p.ends.console
	}
	for stream, f := range outputs {
		if f != nil {
			pumps.Go(func() { p.pump(&pool, stream, f) })
		}
	}
	e := p.lc.Wait()
	for _, f := range outputs {
		if f != nil {
			_ = f.SetReadDeadline(time.Now().Add(drainTime)) // without, its end is waited for
		}
	}
	pumps.Wait()
	p.ends.close()
	p.exit = wire.Exit{Code: e.Code, At: e.At}
	finish(&p.exit)
	p.hub.end()
	close(p.done)
}

func (p *process) pump(pool *chunks, stream byte, f *os.File) {
	name := jsonlog.Stdout
	if stream == wire.Stderr {
		name = jsonlog.Stderr
	}
	failed := false
	write := func(err error) {
		if err != nil && !failed {
			p.warn.Error("output not logged", "err", err)
		}
		failed = err != nil
	}
	pool.pump(f, func(output []byte) {
		if p.log != nil {
			write(p.log.Append(name, output, time.Now()))
		}
		p.hub.write(stream, output)
	})
	if p.log != nil {
		write(p.log.End(name, time.Now()))
	}
}

func (p *process) terminal() bool { return p.ends.console != nil }

func (p *process) signal(sig unix.Signal) error { return p.lc.Signal(sig) }

func (p *process) resize(s wire.Size) error {
	if p.ends.console == nil {
		return wire.Errorf(wire.Invalid, "the process has no terminal")
	}
	return setSize(p.ends.console, s)
}

// attach connects a client. What comes from then on waits for it until the stream
// is run.
func (p *process) attach(k *call) (multiplexed bool) {
	s := newSession(k.conn, k.Streams, p.terminal())
	p.hub.add(s)
	stdin := p.ends.stdin
	if p.terminal() {
		stdin = p.ends.console
	}
	k.stream = func() {
		go func() {
			if k.Streams.Stdin && stdin != nil {
				s.receive(stdin, func() { p.stdinEnded(k) })
			} else {
				s.receive(nil, func() {})
			}
		}()
		s.run()
		p.hub.remove(s)
	}
	return !p.terminal()
}

// stdinEnded closes stdin after a client's. But a client that is cut off by its
// agent's death said nothing of the kind: another may come and go on.
func (p *process) stdinEnded(k *call) {
	if p.ends.stdin == nil || !p.once || dying(k.peer) {
		return
	}
	_ = p.ends.stdin.Close() // what was written is written
}

// dying says whether a process has ended or is about to. Its files are closed
// before others can see its end in any other way.
func dying(pid int) bool {
	const exiting = 4 // PF_EXITING
	if pid == 0 {
		return false // in a PID namespace that we don't see into
	}
	b, err := os.ReadFile("/proc/" + strconv.Itoa(pid) + "/stat")
	if err != nil {
		return true
	}
	// The name may hold anything; the state is the third field, the flags the ninth.
	fields := strings.Fields(string(b[strings.LastIndexByte(string(b), ')')+1:]))
	if len(fields) < 7 {
		return true
	}
	flags, err := strconv.ParseUint(fields[6], 10, 64)
	return err != nil || fields[0] == "Z" || fields[0] == "X" || flags&exiting != 0
}
