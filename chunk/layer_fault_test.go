package chunk

import (
	"bytes"
	"context"
	"errors"
	"math/rand/v2"
	"os"
	"strings"
	"syscall"
	"testing"

	"github.com/cockroachdb/pebble/v2/vfs"
	"github.com/cockroachdb/pebble/v2/vfs/errorfs"

	"everpage/cluster/placement"
)

// An import that is killed or that finds the disk full, at any call to the file system: what is covered afterwards is right, all else is refused, and the
// import made once more completes it.
func TestImportKilled(t *testing.T) {
	rng := rand.New(rand.NewPCG(seedOf(t), 13))
	x := newFleet(t, rng, 1)
	first := x.nodes[0]
	for range 250 {
		first.step()
	}
	first.commit()
	var small bytes.Buffer
	if _, err := first.s.ExportSmall(context.Background(), testBranch, 0, 0, &small); err != nil {
		t.Fatal(err)
	}
	layers := make([][]byte, first.opt.Shards)
	for i := range layers {
		var b bytes.Buffer
		if _, err := first.s.ExportLayer(context.Background(), LayerSpec{Branch: testBranch, Shard: placement.Shard(i)}, &b); err != nil {
			t.Fatal(err)
		}
		layers[i] = b.Bytes()
	}
	rounds := 30
	if testing.Short() {
		rounds = 10
	}
	last := 300
	killed, full := 0, 0
	for range rounds {
		target, calls := rng.IntN(last)+1, 0
		kill := rng.IntN(2) == 0
		var clone *vfs.MemFS
		w := &world{t: t, rng: rng, fs: vfs.NewCrashableMem(), m: first.m, g: first.g}
		w.opt = testOptions(w.fs)
		var lock = make(chan struct{}, 1)
		w.opt.FS = errorfs.Wrap(w.fs, errorfs.InjectorFunc(func(op errorfs.Op) error {
			lock <- struct{}{}
			defer func() { <-lock }()
			switch calls++; {
			case calls < target:
			case kill && clone == nil:
				clone = w.fs.CrashClone(vfs.CrashCloneCfg{UnsyncedDataPercent: rng.IntN(101), RNG: rng})
			case !kill && calls < target+5 && (strings.HasSuffix(op.Path, ".sst") || strings.Contains(op.Path, "layer-")) &&
				(op.Kind == errorfs.OpFileWrite || op.Kind == errorfs.OpCreate || op.Kind == errorfs.OpFileSync):
				return &os.PathError{Op: "write", Path: op.Path, Err: syscall.ENOSPC}
			}
			return nil
		}))
		s, err := Open(w.opt)
		if err != nil {
			if !errors.Is(err, syscall.ENOSPC) {
				t.Fatal(err)
			}
			continue
		}
		w.s = s
		fill := func() (err error) {
			ctx := context.Background()
			if !joined(w) {
				if _, err = w.s.ImportSmall(ctx, testBranch, bytes.NewReader(small.Bytes())); err != nil {
					return err
				}
			}
			for i := range layers {
				if _, err = w.s.Own(testBranch, placement.Shard(i)); err != nil {
					return err
				}
				if _, err = w.s.ImportLayer(ctx, bytes.NewReader(layers[i])); err != nil {
					return err
				}
			}
			return nil
		}
		err = fill()
		last = max(last, calls)
		if kill {
			if err != nil {
				t.Fatal(err)
			}
			if clone == nil {
				if err := w.s.Close(); err != nil {
					t.Fatal(err)
				}
				continue
			}
			killed++
			if err := w.s.Close(); err != nil {
				t.Fatal(err)
			}
			w.fs, w.opt.FS = clone, clone
			if w.s, err = Open(w.opt); err != nil {
				t.Fatal(err)
			}
		} else if err != nil {
			full++
			if !errors.Is(err, syscall.ENOSPC) {
				t.Fatal(err)
			}
		}
		if joined(w) {
			p, _ := w.s.Progress(testBranch)
			w.high = p.Readable
		}
		x.nodes = []*world{w}
		x.compare()
		for !joined(w) || !complete(w) {
			if err := fill(); err != nil && !errors.Is(err, syscall.ENOSPC) {
				t.Fatal(err)
			}
		}
		w.resume()
		w.compareAt(w.high)
		w.close()
	}
	t.Logf("%d killed, %d found the disk full, in %d calls; %d pages right, %d refused", killed, full, last, x.right, x.away)
	first.close()
}

func complete(w *world) bool {
	for i := range w.opt.Shards {
		if !w.s.Coverage(testBranch, placement.Shard(i)).Complete {
			return false
		}
	}
	return true
}

// Wherever what is small of a branch is cut off by a crash, nothing of it is left, or all is there with where its WAL begins; it can be brought again.
func TestImportSmallKilled(t *testing.T) {
	rng := rand.New(rand.NewPCG(seedOf(t), 25))
	x := newFleet(t, rng, 1)
	first, ctx := x.nodes[0], context.Background()
	for range 150 {
		first.step()
	}
	first.commit()
	var small bytes.Buffer
	if _, err := first.s.ExportSmall(ctx, testBranch, 0, 0, &small); err != nil {
		t.Fatal(err)
	}
	whole, none := 0, 0
	for target, ended := 1, false; !ended; target += 1 + rng.IntN(2) {
		fs, calls := vfs.NewCrashableMem(), 0
		var clone *vfs.MemFS
		counting := false
		lock := make(chan struct{}, 1)
		opt := testOptions(fs)
		opt.FS = errorfs.Wrap(fs, errorfs.InjectorFunc(func(errorfs.Op) error {
			lock <- struct{}{}
			defer func() { <-lock }()
			if counting {
				if calls++; calls == target {
					clone = fs.CrashClone(vfs.CrashCloneCfg{UnsyncedDataPercent: rng.IntN(101), RNG: rng})
				}
			}
			return nil
		}))
		s, err := Open(opt)
		if err != nil {
			t.Fatal(err)
		}
		count := func(on bool) {
			lock <- struct{}{}
			counting = on
			<-lock
		}
		count(true)
		if _, err := s.ImportSmall(ctx, testBranch, bytes.NewReader(small.Bytes())); err != nil {
			t.Fatal(err)
		}
		count(false)
		if ended = clone == nil; ended {
			clone = fs.CrashClone(vfs.CrashCloneCfg{})
		}
		if err := s.Close(); err != nil {
			t.Fatal(err)
		}
		w := &world{t: t, rng: rng, fs: clone, m: first.m, g: first.g}
		w.opt = testOptions(clone)
		if w.s, err = Open(w.opt); err != nil {
			t.Fatal(err)
		}
		check(t, w.s, nil)
		switch joined(w) {
		case true:
			whole++
		case false:
			if ended {
				t.Error("a branch that was imported is gone after a crash")
			}
			none++
			if _, err := w.s.ImportSmall(ctx, testBranch, bytes.NewReader(small.Bytes())); err != nil {
				t.Fatal(err)
			}
		}
		if p, _ := w.s.Progress(testBranch); p.Copied == 0 || p.Copied != p.Resume {
			t.Errorf("killed at call %d: the branch was copied at %s and resumes at %s", target, p.Copied, p.Resume)
		}
		w.resume()
		w.compareMeta(w.high)
		w.step()
		w.commit()
		if p, _ := w.s.Progress(testBranch); p.Copied == 0 || p.Copied == p.Resume {
			t.Errorf("the branch was copied at %s and resumes at %s", p.Copied, p.Resume)
		}
		w.close()
	}
	t.Logf("%d times the branch was there, %d times nothing", whole, none)
	if whole == 0 || none == 0 {
		t.Error("the kills hit one side only")
	}
	first.close()
}
