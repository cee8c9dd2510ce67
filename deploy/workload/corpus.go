package workload

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"everpage/deploy/pgtest"
)

// Files is a workload's outcome on disk. All is read-only to its users: copy what a server shall run on.
type Files struct {
	Result
	Dir   string
	Major int
	Which Which
	Seed  int64
	// Base is the data directory of the new, cleanly stopped cluster; WAL holds every segment from its redo position on.
	Base, WAL string
	// Final is the data directory after the workload, cleanly stopped. Its pg_wal holds the last segments only.
	Final string
	// End lies between two records, the last of the workload and those of the server's stop.
	End string
}

const manifest = "corpus.json"

// Corpus is Make with a small run.
func Corpus(ctx context.Context, dir string, major int, settings map[string]string, which Which, seed int64) (*Files, error) {
	return Make(ctx, dir, major, settings, which, Options{Seed: seed})
}

// Make runs a workload on a new server of a major with pgtest.OracleSettings and settings, and leaves dir/base, dir/wal
// and dir/final. dir must be empty or absent. Tablespaces of a data directory lie in DATADIR.tablespaces/OID, and its
// pg_tblspc links there; the empty directories in dir/workload are what the WAL names.
func Make(ctx context.Context, dir string, major int, settings map[string]string, which Which, o Options, initdbArgs ...string) (files *Files, err error) {
	if dir, err = filepath.Abs(dir); err != nil {
		return nil, err
	}
	if entries, err := os.ReadDir(dir); err == nil && len(entries) > 0 {
		return nil, fmt.Errorf("corpus: %s is not empty", dir)
	}
	o.Dir = filepath.Join(dir, "workload")
	files = &Files{Dir: dir, Major: major, Which: which, Seed: o.Seed,
		Base: filepath.Join(dir, "base"), WAL: filepath.Join(dir, "wal"), Final: filepath.Join(dir, "final")}
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return nil, err
	}
	home := filepath.Join(dir, "server")
	s, err := pgtest.Init(ctx, pgtest.Config{Major: major, Dir: home, InitdbArgs: initdbArgs,
		Settings: pgtest.Merge(pgtest.OracleSettings(major), settings)})
	if err != nil {
		return nil, fmt.Errorf("corpus: %w", err)
	}
	defer func() {
		err = errors.Join(err, s.Close())
		if err == nil {
			err = os.RemoveAll(home)
		}
	}()
	if err := files.fill(ctx, s, which, o); err != nil {
		return nil, fmt.Errorf("corpus in %s: %w", dir, err)
	}
	return files, files.write()
}

func (f *Files) fill(ctx context.Context, s *pgtest.Server, which Which, o Options) error {
	if err := s.CopyCold(f.Base); err != nil {
		return err
	}
	if err := s.StartAgain(ctx); err != nil {
		return err
	}
	result, err := Run(ctx, s, which, o)
	if err != nil {
		return err
	}
	f.Result = *result
	if f.End, err = s.CurrentLSN(ctx); err != nil {
		return err
	}
	if err := s.Stop(ctx, pgtest.Fast); err != nil {
		return err
	}
	if err := s.MoveWAL(f.WAL); err != nil {
		return err
	}
	if err := s.CopyCold(f.Final); err != nil {
		return err
	}
	return emptyDirs(f.Tablespaces)
}

// emptyDirs removes what is in directories.
func emptyDirs(dirs []string) error {
	for _, dir := range dirs {
		entries, err := os.ReadDir(dir)
		if err != nil {
			return err
		}
		for _, e := range entries {
			if err := os.RemoveAll(filepath.Join(dir, e.Name())); err != nil {
				return err
			}
		}
	}
	return nil
}

// write makes the corpus one that Load finds. It comes last.
func (f *Files) write() error {
	b, err := json.MarshalIndent(f, "", "\t")
	if err != nil {
		return err
	}
	fresh := filepath.Join(f.Dir, "."+manifest)
	if err := os.WriteFile(fresh, append(b, '\n'), 0o644); err != nil {
		return err
	}
	return os.Rename(fresh, filepath.Join(f.Dir, manifest))
}

// Load returns a corpus that Make has finished in dir.
func Load(dir string) (*Files, error) {
	b, err := os.ReadFile(filepath.Join(dir, manifest))
	if err != nil {
		return nil, fmt.Errorf("corpus: %w", err)
	}
	f := &Files{}
	if err := json.Unmarshal(b, f); err != nil {
		return nil, fmt.Errorf("corpus in %s: %w", dir, err)
	}
	if f.Dir != dir {
		return nil, fmt.Errorf("corpus in %s was made in %s, which its WAL names", dir, f.Dir)
	}
	return f, nil
}
