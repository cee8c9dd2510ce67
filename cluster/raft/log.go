package raft

import (
	"context"
	"io"
	"log"
	"log/slog"
	"strings"

	"github.com/hashicorp/go-hclog"
)

// hclogger passes hashicorp's log on to slog. What Raft calls info is of interest only when something is wrong with it.
type hclogger struct {
	log  *slog.Logger
	name string
	args []any
}

var levels = map[hclog.Level]slog.Level{
	hclog.Trace: slog.LevelDebug - 4, hclog.Debug: slog.LevelDebug - 4, hclog.Info: slog.LevelDebug, hclog.Warn: slog.LevelInfo, hclog.Error: slog.LevelWarn,
}

func (l *hclogger) Log(level hclog.Level, msg string, args ...any) {
	l.log.Log(context.Background(), levels[level], msg, args...)
}

func (l *hclogger) Trace(msg string, args ...any) { l.Log(hclog.Trace, msg, args...) }
func (l *hclogger) Debug(msg string, args ...any) { l.Log(hclog.Debug, msg, args...) }
func (l *hclogger) Info(msg string, args ...any)  { l.Log(hclog.Info, msg, args...) }
func (l *hclogger) Warn(msg string, args ...any)  { l.Log(hclog.Warn, msg, args...) }
func (l *hclogger) Error(msg string, args ...any) { l.Log(hclog.Error, msg, args...) }

func (l *hclogger) enabled(level hclog.Level) bool {
	return l.log.Enabled(context.Background(), levels[level])
}
func (l *hclogger) IsTrace() bool { return l.enabled(hclog.Trace) }
func (l *hclogger) IsDebug() bool { return l.enabled(hclog.Debug) }
func (l *hclogger) IsInfo() bool  { return l.enabled(hclog.Info) }
func (l *hclogger) IsWarn() bool  { return l.enabled(hclog.Warn) }
func (l *hclogger) IsError() bool { return l.enabled(hclog.Error) }

func (l *hclogger) ImpliedArgs() []any { return l.args }

func (l *hclogger) With(args ...any) hclog.Logger {
	return &hclogger{l.log.With(args...), l.name, append(append([]any{}, l.args...), args...)}
}

func (l *hclogger) Name() string { return l.name }
func (l *hclogger) Named(name string) hclog.Logger {
	return l.ResetNamed(strings.Trim(l.name+"."+name, "."))
}
func (l *hclogger) ResetNamed(name string) hclog.Logger { return &hclogger{l.log, name, l.args} }
func (l *hclogger) SetLevel(hclog.Level)                {}
func (l *hclogger) GetLevel() hclog.Level               { return hclog.Info }
func (l *hclogger) StandardLogger(o *hclog.StandardLoggerOptions) *log.Logger {
	return log.New(l.StandardWriter(o), "", 0)
}
func (l *hclogger) StandardWriter(*hclog.StandardLoggerOptions) io.Writer { return lines{l} }

// lines logs what is written, a line each.
type lines struct{ l *hclogger }

func (w lines) Write(p []byte) (int, error) {
	w.l.Info(strings.TrimSpace(string(p)))
	return len(p), nil
}
