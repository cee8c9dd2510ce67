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
