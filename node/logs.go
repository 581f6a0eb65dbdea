package node

import (
	"context"
	"io"
	"path/filepath"

	"github.com/shoal-engine/shoal/api"
	"github.com/shoal-engine/shoal/api/stdcopy"
	"github.com/shoal-engine/shoal/node/runtime/jsonlog"
)

// logPath is where a container's output is kept; empty if nowhere.
func logPath(dir string, r record) string {
	if r.HostConfig.LogConfig.Type == "none" {
		return ""
	}
	return filepath.Join(dir, r.ID+"-json.log")
}

// ContainerLogs implements api.Observers.
func (n *Node) ContainerLogs(ctx context.Context, id string, o api.LogsOptions) (api.Output, error) {
	if !o.Stdout && !o.Stderr {
		return api.Output{}, api.InvalidArgument("Bad parameters: you must choose at least one stream")
	}
	c, err := n.find(ctx, id)
	if err != nil {
		return api.Output{}, err
	}
	c.mu.Lock()
	r := c.rec.clone()
	var done <-chan struct{}
	if o.Follow && c.task != nil {
		done = c.ended
	}
	c.mu.Unlock()
	if logPath(c.dir, r) == "" {
		return api.Output{}, api.NotImplemented("configured logging driver does not support reading")
	}
	return api.Output{ReadCloser: n.readLogs(ctx, r, o, done), Multiplexed: !r.Config.Tty}, nil
}

// logTime is how Docker writes the time of a line: RFC 3339 with all nine digits.
const logTime = "2006-01-02T15:04:05.000000000Z07:00"

// readLogs streams a container's log, in frames unless it has a terminal. With
// done it follows until that closes.
func (n *Node) readLogs(ctx context.Context, r record, o api.LogsOptions, done <-chan struct{}) io.ReadCloser {
	ctx, cancel := context.WithCancel(ctx)
	stop := context.AfterFunc(n.life, cancel)
	in, out := io.Pipe()
	go func() {
		defer stop()
		defer cancel()
		out.CloseWithError(copyLogs(ctx, out, logPath(n.containerDir(r.ID), r), r.Config.Tty, o, done))
	}()
	return &logReader{in, cancel}
}

func copyLogs(ctx context.Context, w io.Writer, path string, raw bool, o api.LogsOptions, done <-chan struct{}) error {
	var buf, frame []byte
	for e, err := range jsonlog.Read(ctx, path, jsonlog.Options{
		Since: o.Since, Until: o.Until, Tail: o.Tail, Stdout: o.Stdout, Stderr: o.Stderr, Done: done,
	}) {
		if err != nil {
			return err
		}
		buf = buf[:0]
		if o.Timestamps {
			buf = append(e.Time.UTC().AppendFormat(buf, logTime), ' ')
		}
		if o.Details {
			buf = append(buf, ' ') // no log option here adds any
		}
		buf = append(buf, e.Line...)
		frame = append(frame[:0], buf...)
		if !raw {
			stream := stdcopy.Stdout
			if e.Stream == jsonlog.Stderr {
				stream = stdcopy.Stderr
			}
			frame = stdcopy.Append(frame[:0], stream, buf)
		}
		if _, err := w.Write(frame); err != nil {
			return err
		}
	}
	return nil
}

// logReader ends the reading of the log when it is closed.
type logReader struct {
	*io.PipeReader
	cancel context.CancelFunc
}

func (l *logReader) Close() error {
	l.cancel()
	return l.PipeReader.Close()
}
