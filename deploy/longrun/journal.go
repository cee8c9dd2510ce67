package main

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"
	"time"
)

// result is what one corpus adds.
type result struct {
	trial   string
	records uint64
	images  uint64 // pages compared with after-images in the WAL
	final   uint64 // pages compared with the stopped primary's files
	objects uint64 // small files and SLRU segments
}

// journal is the log file: a line for each corpus, and notes, which begin with a #.
type journal struct {
	file    *os.File // nil: none
	out     io.Writer
	pages   uint64
	corpora uint64
}

const lineFormat = "records=%d images=%d final=%d objects=%d mismatches=0"

// openJournal opens a log, or makes it, and counts the pages that it tells of.
func openJournal(path string, major int, out io.Writer) (*journal, error) {
	j := &journal{out: out}
	if path == "" {
		return j, nil
	}
	f, err := os.OpenFile(path, os.O_CREATE|os.O_RDWR|os.O_APPEND, 0o644)
	if err != nil {
		return nil, err
	}
	j.file = f
	head := fmt.Sprintf("# pages that redo made, held against PostgreSQL %d's own", major)
	lines := bufio.NewScanner(f)
	n := 0
	for ; lines.Scan(); n++ {
		if n == 0 && lines.Text() != head {
			return nil, errors.Join(fmt.Errorf("%s does not begin with %q: it is of another kind or major", path, head), f.Close())
		}
		if strings.HasPrefix(lines.Text(), "#") {
			continue
		}
		at := strings.Index(lines.Text(), "records=")
		var r result
		if at < 0 {
			return nil, errors.Join(fmt.Errorf("%s: line %d is not a corpus", path, n+1), f.Close())
		}
		if _, err := fmt.Sscanf(lines.Text()[at:], lineFormat, &r.records, &r.images, &r.final, &r.objects); err != nil {
			return nil, errors.Join(fmt.Errorf("%s: line %d: %w", path, n+1, err), f.Close())
		}
		j.pages += r.images + r.final
		j.corpora++
	}
	if err := lines.Err(); err != nil {
		return nil, errors.Join(err, f.Close())
	}
	if n == 0 {
		return j, j.line(head)
	}
	return j, nil
}

// corpus enters a corpus that was right.
func (j *journal) corpus(r *result, took time.Duration) error {
	j.pages += r.images + r.final
	j.corpora++
	line := fmt.Sprintf(lineFormat, r.records, r.images, r.final, r.objects)
	return j.line(fmt.Sprintf("%s %s seconds=%.0f total=%d", r.trial, line, took.Seconds(), j.pages))
}

func (j *journal) note(format string, args ...any) error {
	return j.line("# " + strings.ReplaceAll(fmt.Sprintf(format, args...), "\n", " "))
}

func (j *journal) line(text string) error {
	fmt.Fprintln(j.out, text)
	if j.file == nil {
		return nil
	}
	_, err := fmt.Fprintln(j.file, text)
	return err
}

func (j *journal) close() {
	if j.file != nil {
		j.file.Close()
	}
}
