package chunk

import (
	"errors"
	"fmt"
	"log/slog"
	"sync"

	"github.com/cockroachdb/pebble/v2/vfs"
)

// spareSpace is a file that takes disk space to give it back when the disk is full, so that the database can still write the little that it can't
// do without (its manifest), and so that a full disk is an error for new tables and not the end of the process.
type spareSpace struct {
	fs    vfs.FS
	dir   string
	bytes int64
	log   *slog.Logger

	mu    sync.Mutex
	taken bool
}

func (s *spareSpace) path() string { return s.fs.PathJoin(s.dir, "RESERVE") }

// available is the free disk space; ok is false where the file system doesn't tell.
func (s *spareSpace) available() (n uint64, ok bool) {
	u, err := s.fs.GetDiskUsage(s.dir)
	return u.AvailBytes, err == nil
}

// take reserves the space, if there is plenty.
func (s *spareSpace) take() {
	s.mu.Lock()
	defer s.mu.Unlock()
	if n, ok := s.available(); s.bytes == 0 || s.taken || !ok || n < 4*uint64(s.bytes) {
		return
	}
	f, err := s.fs.Create(s.path(), vfs.WriteCategoryUnspecified)
	if err != nil {
		s.log.Warn("can't reserve disk space", "err", err)
		return
	}
	buf := make([]byte, 1<<20)
	for left := s.bytes; left > 0 && err == nil; left -= int64(len(buf)) {
		_, err = f.Write(buf[:min(int64(len(buf)), left)])
	}
	if err = errors.Join(err, f.Close()); err != nil {
		s.log.Warn("can't reserve disk space", "err", err)
		s.fs.Remove(s.path())
		return
	}
	s.taken = true
}

// release gives the space back.
func (s *spareSpace) release() {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.taken {
		s.log.Error("the disk is full: reserved space is given up", "dir", s.dir, "bytes", s.bytes)
		s.fs.Remove(s.path())
		s.taken = false
	}
}

// room is an error if there isn't space for n more bytes of table.
func (s *spareSpace) room(n int64) error {
	have, ok := s.available()
	if !ok || s.bytes == 0 {
		return nil
	}
	s.mu.Lock()
	want := uint64(n)
	if !s.taken {
		want += uint64(s.bytes)
	}
	s.mu.Unlock()
	if have < want {
		return fmt.Errorf("disk full: %d bytes are free in %s, %d are needed", have, s.dir, want)
	}
	s.take()
	return nil
}
