package redo_test

import (
	"os"
	"os/exec"
	"path/filepath"
	"strings"

	"everpage/wal/pg"
)

// secondOpinion writes all relations as files and lets deploy/oracle/cmpdirs.py, which shares no code with redo and its masks, compare them with those
// of a cleanly stopped data directory.
func (r *replayer) secondOpinion(final string) {
	r.t.Helper()
	ours, theirs := filepath.Join(r.t.TempDir(), "replayed"), filepath.Join(r.t.TempDir(), "final")
	files, blocks := map[pg.RelFork]bool{}, 0
	var walk func(path, name string)
	walk = func(path, name string) {
		entries, err := os.ReadDir(path)
		if err != nil {
			r.t.Fatal(err)
		}
		for _, e := range entries {
			path, name := filepath.Join(path, e.Name()), filepath.ToSlash(filepath.Join(name, e.Name()))
			info, err := os.Stat(path) // through the links of pg_tblspc
			if err != nil {
				r.t.Fatal(err)
			}
			if info.IsDir() {
				walk(path, name)
				continue
			}
			f, err := pg.Classify(name)
			if err != nil {
				r.t.Fatal(err)
			}
			if f.Kind != pg.FileRelation {
				continue
			}
			files[f.Rel] = true
			b := r.segment(f.Rel, f.Segment)
			// An init fork tells of an unlogged relation, also when it is empty.
			if info.Size() == 0 && len(b) == 0 && f.Rel.Fork != pg.InitFork {
				continue // a relation that was dropped, or never filled
			}
			blocks += len(b) / pg.BlockSize
			for _, dir := range []string{ours, theirs} {
				if err := os.MkdirAll(filepath.Join(dir, filepath.Dir(name)), 0o755); err != nil {
					r.t.Fatal(err)
				}
			}
			if err := os.WriteFile(filepath.Join(ours, name), b, 0o644); err != nil {
				r.t.Fatal(err)
			}
			if err := os.Symlink(path, filepath.Join(theirs, name)); err != nil {
				r.t.Fatal(err)
			}
		}
	}
	walk(final, "")
	for f, n := range r.sizes {
		if n > 0 && f.Fork == pg.MainFork && !files[f] {
			r.mismatch("%s has %d blocks at the end, the primary has no such file", f, n)
		}
	}
	out, err := exec.CommandContext(r.t.Context(), "python3", "../deploy/oracle/cmpdirs.py", ours, theirs).CombinedOutput()
	if err != nil {
		r.t.Errorf("cmpdirs.py: %v\n%s", err, out)
	}
	r.t.Logf("cmpdirs.py compared %d pages: %s", blocks, strings.Join(strings.Fields(string(out)), " "))
}

// segment is a relation's file of up to 1 GB.
func (r *replayer) segment(f pg.RelFork, segment pg.BlockNumber) []byte {
	first := segment * pg.SegmentBlocks
	if r.sizes[f] <= first {
		return nil
	}
	b := make([]byte, int(min(r.sizes[f]-first, pg.SegmentBlocks))*pg.BlockSize)
	for i := range len(b) / pg.BlockSize {
		if p := r.pages[pg.PageKey{RelFork: f, Block: first + pg.BlockNumber(i)}]; p != nil {
			copy(b[i*pg.BlockSize:], p)
		}
	}
	return b
}
