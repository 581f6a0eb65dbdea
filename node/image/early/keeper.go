package early

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"os"
	"strconv"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

// Patience is how long a read waits for bytes before it fails.
const Patience = 45 * time.Second

// The files that a keeper is started with.
const (
	fuseFD   = 3 // the kernel's requests
	dataFD   = 4 // the bytes
	listenFD = 5 // where an agent connects
)

// keeper answers the kernel.
type keeper struct {
	fuse, data *os.File
	size       int64
	patience   time.Duration
	log        *slog.Logger

	mu      sync.Mutex
	have    Spans
	changed chan struct{} // closed and replaced when have grows or failed is set
	failed  bool
	reads   map[uint64]chan struct{} // closed when nobody waits for that request
	needs   map[Span]int             // how many wait for it
	agent   net.Conn                 // nil while there is none
}

func newKeeper(fuse, data *os.File, size int64, patience time.Duration, log *slog.Logger) *keeper {
	return &keeper{
		fuse: fuse, data: data, size: size, patience: patience, log: log,
		changed: make(chan struct{}), reads: map[uint64]chan struct{}{}, needs: map[Span]int{},
	}
}

// Main is the whole of a keeper's process. Its one argument is the file's size. It
// gives the exit code.
func Main(args []string) int {
	log := slog.New(slog.NewTextHandler(os.Stderr, nil))
	if err := run(args, log); err != nil {
		log.Error("keeper failed", "err", err)
		return 1
	}
	return 0
}

func run(args []string, log *slog.Logger) error {
	if len(args) != 1 {
		return errors.New("usage: early SIZE")
	}
	size, err := strconv.ParseInt(args[0], 10, 64)
	if err != nil || size < 0 {
		return fmt.Errorf("invalid size %q", args[0])
	}
	if err := unix.SetNonblock(fuseFD, true); err != nil {
		return err
	}
	listen := os.NewFile(listenFD, "listener")
	l, err := net.FileListener(listen)
	if err != nil {
		return err
	}
	_ = listen.Close() // l has its own
	// Containers wait for this process: it is the last to be killed for lack of memory.
	if err := os.WriteFile("/proc/self/oom_score_adj", []byte("-999"), 0); err != nil {
		log.Debug("oom_score_adj not lowered", "err", err)
	}
	k := newKeeper(os.NewFile(fuseFD, "fuse"), os.NewFile(dataFD, "data"), size, Patience, log)
	return k.run(l)
}

// run answers until nothing of the file is in use.
func (k *keeper) run(l net.Listener) error {
	var wg sync.WaitGroup
	defer wg.Wait()
	defer k.hangUp()
	defer l.Close()
	wg.Go(func() { k.accept(l, &wg) })
	buf := make([]byte, maxRequest+maxRead)
	for {
		n, err := k.fuse.Read(buf)
		switch {
		case errors.Is(err, unix.ENODEV) || errors.Is(err, io.EOF) || errors.Is(err, os.ErrClosed):
			return nil
		case errors.Is(err, unix.ENOENT) || errors.Is(err, unix.EINTR): // it was interrupted meanwhile
			continue
		case err != nil:
			return err
		}
		r, err := decodeRequest(buf[:n])
		if err != nil {
			return err
		}
		if r.op == opRead {
			done := k.begin(r.unique)
			wg.Go(func() { k.read(r, done) })
			continue
		}
		if answer := k.answer(r); answer != nil {
			k.send(answer)
		}
	}
}

// answer is that to what takes no time; nil if the kernel wants none.
func (k *keeper) answer(r request) []byte {
	switch r.op {
	case opInit:
		if r.major != fuseMajor {
			return failed(r.unique, unix.EPROTO)
		}
		return initialized(r)
	case opGetattr:
		return attributes(r.unique, k.size)
	case opOpen:
		return opened(r.unique)
	case opRelease, opFlush, opDestroy:
		return reply(r.unique, 0, 0)
	case opInterrupt:
		k.interrupt(r.target)
		return nil
	case opForget, opBatchForget:
		return nil
	default:
		return failed(r.unique, unix.ENOSYS)
	}
}

// send writes an answer. ENOENT means that nobody waits for it any more.
func (k *keeper) send(b []byte) {
	if _, err := k.fuse.Write(b); err != nil && !errors.Is(err, unix.ENOENT) && !errors.Is(err, unix.ENODEV) {
		k.log.Warn("answer the kernel", "err", err)
	}
}

func (k *keeper) begin(unique uint64) (done chan struct{}) {
	k.mu.Lock()
	defer k.mu.Unlock()
	done = make(chan struct{})
	k.reads[unique] = done
	return done
}

func (k *keeper) interrupt(unique uint64) {
	k.mu.Lock()
	defer k.mu.Unlock()
	if done, ok := k.reads[unique]; ok {
		close(done)
		delete(k.reads, unique)
	}
}

// read answers a read once the bytes are there.
func (k *keeper) read(r request, done <-chan struct{}) {
	defer func() {
		k.mu.Lock()
		delete(k.reads, r.unique)
		k.mu.Unlock()
	}()
	span := Span{min(r.offset, k.size), min(r.offset+int64(r.size), k.size)}
	if errno := k.await(span, done); errno != 0 {
		k.send(failed(r.unique, errno))
		return
	}
	n := int(span.End - span.Start)
	b := reply(r.unique, 0, n)[:headerOut+n]
	if m, err := k.data.ReadAt(b[headerOut:], span.Start); m < n {
		k.log.Error("read back", "at", span.Start, "bytes", n, "err", err)
		b = failed(r.unique, unix.EIO)
	}
	k.send(b)
}

// await waits until a range is there.
func (k *keeper) await(span Span, done <-chan struct{}) unix.Errno {
	k.mu.Lock()
	defer k.mu.Unlock()
	if k.have.Has(span) {
		return 0
	}
	if k.needs[span]++; k.needs[span] == 1 {
		k.tell(message{kindNeed, span})
	}
	defer func() {
		if k.needs[span]--; k.needs[span] == 0 {
			delete(k.needs, span)
		}
	}()
	late := time.NewTimer(k.patience)
	defer late.Stop()
	for {
		if k.have.Has(span) {
			return 0
		}
		if k.failed {
			return unix.EIO
		}
		changed := k.changed
		k.mu.Unlock()
		var errno unix.Errno
		select {
		case <-changed:
		case <-done:
			errno = unix.EINTR
		case <-late.C:
			errno = unix.EIO
		}
		k.mu.Lock()
		if errno == unix.EIO && !k.have.Has(span) {
			k.log.Warn("bytes didn't come", "from", span.Start, "to", span.End)
			k.tell(message{kindGaveUp, span})
		}
		if errno != 0 {
			return errno
		}
	}
}

// tell sends something to the agent, if there is one; with mu held. An agent that takes
// nothing is cut off: it is told again what is needed when it returns.
func (k *keeper) tell(m message) {
	if k.agent == nil {
		return
	}
	k.agent.SetWriteDeadline(time.Now().Add(time.Second))
	if _, err := k.agent.Write(m.encode()); err != nil {
		_ = k.agent.Close()
		k.agent = nil
	}
}

// accept serves agents; the last to come is the one that counts.
func (k *keeper) accept(l net.Listener, wg *sync.WaitGroup) {
	for {
		conn, err := l.Accept()
		if err != nil {
			return
		}
		k.greet(conn)
		wg.Go(func() { k.listen(conn) })
	}
}

// greet tells an agent what is there and what is needed.
func (k *keeper) greet(conn net.Conn) {
	k.mu.Lock()
	defer k.mu.Unlock()
	if k.agent != nil {
		_ = k.agent.Close()
	}
	k.agent = conn
	for _, s := range k.have {
		k.tell(message{kindHave, s})
	}
	k.tell(message{kindHave, Span{k.size, k.size}})
	for s := range k.needs {
		k.tell(message{kindNeed, s})
	}
}

func (k *keeper) hangUp() {
	k.mu.Lock()
	defer k.mu.Unlock()
	if k.agent != nil {
		_ = k.agent.Close()
		k.agent = nil
	}
}

// listen takes in what an agent says.
func (k *keeper) listen(conn net.Conn) {
	defer conn.Close()
	r := bufio.NewReader(conn)
	for {
		m, err := readMessage(r)
		if err != nil {
			return
		}
		k.mu.Lock()
		switch m.kind {
		case kindHave:
			k.have.Add(Span{m.span.Start, min(m.span.End, k.size)})
		case kindFail:
			k.failed = true
		}
		close(k.changed)
		k.changed = make(chan struct{})
		k.mu.Unlock()
	}
}
