package main

import (
	"fmt"
	"io"
	"os"
	"time"
)

// progress tells on a terminal, in one line that is overwritten, how far a long command is; elsewhere it writes a line every ten seconds.
type progress struct {
	w        io.Writer
	quiet    bool
	terminal bool
	started  time.Time
	last     time.Time
	shown    bool
}

func newProgress(f *os.File, quiet bool) *progress {
	st, err := f.Stat()
	return &progress{w: f, quiet: quiet, terminal: err == nil && st.Mode()&os.ModeCharDevice != 0, started: time.Now(), last: time.Now()}
}

func (p *progress) show(what string, done, total int64, message string) {
	every := 10 * time.Second
	if p.terminal {
		every = 200 * time.Millisecond
	}
	now := time.Now()
	if p.quiet || now.Sub(p.last) < every {
		return
	}
	p.last, p.shown = now, true
	line := what
	if total > 0 {
		elapsed := now.Sub(p.started)
		line += fmt.Sprintf("  %s of %s (%d %%)", size(done), size(total), min(100, done*100/total))
		if done > 0 && done < total {
			rate := float64(done) / elapsed.Seconds()
			line += fmt.Sprintf("  %s/s  %s left", size(int64(rate)), time.Duration(float64(total-done)/rate*float64(time.Second)).Round(time.Second))
		}
	}
	if message != "" {
		line += "  " + message
	}
	if p.terminal {
		fmt.Fprintf(p.w, "\r\033[K%s", line)
	} else {
		fmt.Fprintln(p.w, line)
	}
}

// done clears the line.
func (p *progress) done() {
	if p.shown && p.terminal {
		fmt.Fprint(p.w, "\r\033[K")
	}
	p.shown = false
}
