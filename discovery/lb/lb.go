package lb

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"github.com/shoal-engine/shoal/cluster/catalog"
)

// Config of a renderer.
type Config struct {
	Reader   catalog.Reader
	Template *Template
	File     string // the path of the file that is kept
	Check    string // command that accepts or refuses a draft; none if empty
	Reload   string // command after a change; none if empty
	// Timeout bounds each command; 30 s if 0.
	Timeout time.Duration
	// Settle is how long a first change waits for others to go along; 200 ms if 0.
	Settle time.Duration
	Logger *slog.Logger
}

// Renderer keeps one file. Run and Once must not be called at the same time.
type Renderer struct {
	Config
	// unloaded says that the file changed and Reload hasn't succeeded since.
	unloaded bool
	problems map[Problem]bool // reported already
}

// New makes a renderer.
func New(c Config) *Renderer {
	if c.Timeout == 0 {
		c.Timeout = 30 * time.Second
	}
	if c.Settle == 0 {
		c.Settle = 200 * time.Millisecond
	}
	return &Renderer{Config: c}
}

const (
	firstRetry = time.Second
	lastRetry  = time.Minute
)

// Run keeps the file in step with the catalog until ctx ends. What fails is
// logged, leaves the old file in place, and is tried again with the next change,
// at the latest after a minute.
func (r *Renderer) Run(ctx context.Context) error {
	retry := firstRetry
	for {
		index := r.Reader.View().Index()
		wait, cancel := ctx, context.CancelFunc(func() {})
		if err := r.Once(ctx); err == nil {
			retry = firstRetry
		} else if ctx.Err() == nil {
			r.Logger.Error("keep the load balancer in step", "file", r.File, "err", err)
			wait, cancel = context.WithTimeout(ctx, retry)
			retry = min(2*retry, lastRetry)
		}
		err := r.Reader.Wait(wait, index)
		timedOut := wait.Err() != nil
		cancel()
		if ctx.Err() != nil {
			return nil
		}
		if timedOut {
			continue
		}
		if err != nil {
			return fmt.Errorf("wait for the catalog: %w", err)
		}
		settle := time.NewTimer(r.Settle)
		select {
		case <-settle.C:
		case <-ctx.Done():
			settle.Stop()
			return nil
		}
	}
}

// Once brings the file in step with the catalog as it is now. It writes the file
// only if the text differs and Check accepts it, and runs Reload only if the file
// was written or the last Reload failed.
func (r *Renderer) Once(ctx context.Context) error {
	m := Build(r.Reader.View())
	r.report(m.Problems)
	text, err := r.Template.Render(m)
	if err != nil {
		return fmt.Errorf("render: %w", err)
	}
	old, err := os.ReadFile(r.File)
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		return fmt.Errorf("read the old file: %w", err)
	}
	if err != nil || !bytes.Equal(old, text) {
		if err := r.replace(ctx, text); err != nil {
			return err
		}
		r.unloaded = true
		r.Logger.Info("wrote the load balancer's file", "file", r.File, "routes", len(m.Routes))
	}
	if !r.unloaded {
		return nil
	}
	if err := r.command(ctx, "reload", r.Reload, r.File); err != nil {
		return err
	}
	r.unloaded = false
	if r.Reload != "" {
		r.Logger.Info("reloaded the load balancer", "file", r.File)
	}
	return nil
}

// report logs every problem once, for as long as it lasts.
func (r *Renderer) report(problems []Problem) {
	now := make(map[Problem]bool, len(problems))
	for _, p := range problems {
		now[p] = true
		if !r.problems[p] {
			r.Logger.Warn("leave out a container's tag", "container", p.Container, "problem", p.Text)
		}
	}
	r.problems = now
}

// replace puts a new text in the file's place, in one step and only if Check
// accepts it.
func (r *Renderer) replace(ctx context.Context, text []byte) (err error) {
	mode := os.FileMode(0o644)
	if st, err := os.Stat(r.File); err == nil {
		mode = st.Mode().Perm()
	}
	draft, err := os.CreateTemp(filepath.Dir(r.File), "."+filepath.Base(r.File)+".*")
	if err != nil {
		return fmt.Errorf("make a draft: %w", err)
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, os.Remove(draft.Name()))
		}
	}()
	_, err = draft.Write(text)
	err = errors.Join(err, draft.Chmod(mode), draft.Sync(), draft.Close())
	if err != nil {
		return fmt.Errorf("write a draft: %w", err)
	}
	if err := r.command(ctx, "check", r.Check, draft.Name()); err != nil {
		return err
	}
	if err := os.Rename(draft.Name(), r.File); err != nil {
		return fmt.Errorf("replace the file: %w", err)
	}
	return nil
}

// maxOutput is how much of a command's output an error repeats, in bytes.
const maxOutput = 4 << 10

// command runs a command on a file and waits for it, but not for what it leaves
// running in the background.
func (r *Renderer) command(ctx context.Context, what, line, file string) error {
	if line == "" {
		return nil
	}
	ctx, cancel := context.WithTimeout(ctx, r.Timeout)
	defer cancel()
	var out tail
	c := exec.CommandContext(ctx, "sh", "-c", line)
	c.Env = append(os.Environ(), "FILE="+file)
	c.Stdout, c.Stderr = &out, &out
	// What the command started ends with it when time is up.
	c.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	c.Cancel = func() error { return syscall.Kill(-c.Process.Pid, syscall.SIGKILL) }
	c.WaitDelay = time.Second
	err := c.Run()
	if err == nil || errors.Is(err, exec.ErrWaitDelay) {
		return nil
	}
	if errors.Is(ctx.Err(), context.DeadlineExceeded) {
		err = fmt.Errorf("not done after %s: %w", r.Timeout, ctx.Err())
	}
	return fmt.Errorf("%s command: %w: %s", what, err, strings.TrimSpace(out.String()))
}

// tail keeps the end of what is written to it.
type tail struct{ b []byte }

func (t *tail) Write(p []byte) (int, error) {
	t.b = append(t.b, p...)
	if len(t.b) > maxOutput {
		t.b = append(t.b[:0], t.b[len(t.b)-maxOutput:]...)
	}
	return len(p), nil
}

func (t *tail) String() string { return strings.ToValidUTF8(string(t.b), "") }
