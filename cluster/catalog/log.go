package catalog

import (
	"context"
	"io"
	"log"
	"log/slog"

	"github.com/hashicorp/go-hclog"
)

// raftLog lets raft write to a slog.Logger. What raft calls information is detail
// to an operator of this engine, and its errors are mostly an unreachable peer:
// both go one level down.
type raftLog struct {
	out  *slog.Logger
	name string
	args []any
}

func newRaftLog(out *slog.Logger) hclog.Logger { return &raftLog{out: out.With("part", "raft")} }

func (l *raftLog) level(v hclog.Level) slog.Level {
	switch v {
	case hclog.Error:
		return slog.LevelWarn
	case hclog.Warn:
		return slog.LevelInfo
	default:
		return slog.LevelDebug
	}
}

func (l *raftLog) Log(v hclog.Level, msg string, args ...any) {
	l.out.Log(context.Background(), l.level(v), msg, args...)
}

func (l *raftLog) Trace(string, ...any)          {}
func (l *raftLog) Debug(msg string, args ...any) { l.Log(hclog.Debug, msg, args...) }
func (l *raftLog) Info(msg string, args ...any)  { l.Log(hclog.Info, msg, args...) }
func (l *raftLog) Warn(msg string, args ...any)  { l.Log(hclog.Warn, msg, args...) }
func (l *raftLog) Error(msg string, args ...any) { l.Log(hclog.Error, msg, args...) }

func (l *raftLog) enabled(v hclog.Level) bool {
	return l.out.Enabled(context.Background(), l.level(v))
}

func (l *raftLog) IsTrace() bool { return false }
func (l *raftLog) IsDebug() bool { return l.enabled(hclog.Debug) }
func (l *raftLog) IsInfo() bool  { return l.enabled(hclog.Info) }
func (l *raftLog) IsWarn() bool  { return l.enabled(hclog.Warn) }
func (l *raftLog) IsError() bool { return l.enabled(hclog.Error) }

func (l *raftLog) ImpliedArgs() []any { return l.args }
func (l *raftLog) Name() string       { return l.name }

func (l *raftLog) With(args ...any) hclog.Logger {
	return &raftLog{l.out.With(args...), l.name, append(l.args[:len(l.args):len(l.args)], args...)}
}

func (l *raftLog) Named(name string) hclog.Logger      { return &raftLog{l.out, name, l.args} }
func (l *raftLog) ResetNamed(name string) hclog.Logger { return l.Named(name) }

// SetLevel does nothing: the handler of the slog.Logger decides.
func (l *raftLog) SetLevel(hclog.Level)  {}
func (l *raftLog) GetLevel() hclog.Level { return hclog.Debug }

func (l *raftLog) StandardLogger(*hclog.StandardLoggerOptions) *log.Logger {
	return slog.NewLogLogger(l.out.Handler(), slog.LevelDebug)
}

func (l *raftLog) StandardWriter(o *hclog.StandardLoggerOptions) io.Writer {
	return l.StandardLogger(o).Writer()
}
