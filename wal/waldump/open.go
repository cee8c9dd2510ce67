package waldump

import (
	"fmt"
	"io"
	"os"
	"slices"

	"everpage/wal"
	"everpage/wal/pg"
)

// Open makes a reader of one segment file or of a directory of them, positioned at the first record that starts at or behind start (0: at the
// first there is). end, if not 0, is where records must no longer end behind, and up to which the WAL must be there and valid. In a
// directory the newest timeline is followed, back through its .history file where there is one.
func Open(path string, start, end pg.LSN) (*wal.Reader, io.Closer, error) {
	info, err := os.Stat(path)
	if err != nil {
		return nil, nil, err
	}
	var dir *wal.Dir
	var history *wal.History
	if info.IsDir() {
		dir, history, err = openDir(path)
	} else {
		dir, err = wal.OpenFile(path)
	}
	if err != nil {
		return nil, nil, err
	}
	first, _ := dir.Bounds()
	r, err := wal.NewReader(dir, wal.ReaderOptions{SegmentSize: dir.SegmentSize(), History: history, End: end})
	if err != nil {
		dir.Close()
		return nil, nil, err
	}
	if start != 0 && start < first {
		dir.Close()
		return nil, nil, fmt.Errorf("%s has no WAL at %s: it starts at %s", path, start, first)
	}
	r.Find(max(start, first))
	return r, dir, nil
}

func openDir(path string) (*wal.Dir, *wal.History, error) {
	size, err := wal.DetectSegmentSize(path)
	if err != nil {
		return nil, nil, err
	}
	segments, histories, err := wal.ListDir(path, size)
	if err != nil {
		return nil, nil, err
	}
	newest := pg.TimelineID(1)
	for _, g := range segments {
		newest = max(newest, g.Timeline)
	}
	if newest > 1 && !slices.Contains(histories, newest) {
		// Without its file nothing is known of where it came from: only its own segments can be read.
		dir, err := wal.OpenDir(path, size, wal.History{Timeline: newest})
		return dir, nil, err
	}
	h, err := wal.ReadHistory(path, newest)
	if err != nil {
		return nil, nil, err
	}
	dir, err := wal.OpenDir(path, size, h)
	return dir, &h, err
}
