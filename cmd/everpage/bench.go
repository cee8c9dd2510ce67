package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"runtime/pprof"
	"syscall"
	"time"

	"github.com/spf13/cobra"

	"everpage/chunk"
	"everpage/chunk/ingest"
	"everpage/chunk/offline"
	"everpage/cluster/placement"
	"everpage/redo"
	"everpage/wal"
	"everpage/wal/pg"
)

func newBench(g *globals) *cobra.Command {
	c := &cobra.Command{Use: "bench", Short: "Measure ingest and page reads on this machine"}
	c.AddCommand(newBenchIngest(g), newBenchGetPage(g))
	return c
}

// ingestFlags are what bench ingest is told.
type ingestFlags struct {
	base, wal, store string
	decodeOnly       bool
	profile          string
	cacheBytes       int64
	runBytes         int64
	memory           int64
}

// ingestResult is what bench ingest has measured. Times are in seconds, CPU time is that of all threads.
type ingestResult struct {
	Mode          string  `json:"mode"` // ingest or decode
	Start         pg.LSN  `json:"start"`
	End           pg.LSN  `json:"end"`
	Records       uint64  `json:"records"`
	PageChanges   uint64  `json:"page_changes,omitempty"`
	WALBytes      uint64  `json:"wal_bytes"`
	ImportSeconds float64 `json:"import_seconds,omitempty"`
	ImportBytes   int64   `json:"import_bytes,omitempty"`
	ReadSeconds   float64 `json:"readable_seconds,omitempty"` // until the last LSN could be read
	Seconds       float64 `json:"seconds"`                    // until it was durable, too
	CPUSeconds    float64 `json:"cpu_seconds"`
	MBPerSecond   float64 `json:"mb_per_second"`     // of WAL, 10⁶ bytes
	MBPerCPU      float64 `json:"mb_per_cpu_second"` // of WAL
	StoreBytes    uint64  `json:"store_bytes,omitempty"`
	WrittenBytes  uint64  `json:"written_bytes,omitempty"` // by ingest and compactions, import included
	Images        uint64  `json:"images_added,omitempty"`
	PeakRSSBytes  uint64  `json:"peak_rss_bytes"`
	EndReason     string  `json:"end_reason"`
}

func newBenchIngest(g *globals) *cobra.Command {
	var f ingestFlags
	c := &cobra.Command{
		Use:   "ingest --base PGDATA --wal DIR",
		Short: "Measure ingest offline: from the first byte of WAL until all of it is durable and can be read",
		Long: `Import a data directory that was stopped (or an unpacked base backup), then ingest a directory of WAL segments as a node that owns everything
does, and report how long that took: from the first byte until the last LSN is durable and can be read. The import is timed apart.

--decode-only measures what a node does with WAL of which it owns nothing: read, check CRCs, decode, find out which pages change, leave them out.`,
		Example: `  everpage bench ingest --base /srv/cold-copy --wal /srv/archive
  everpage bench ingest --base /srv/cold-copy --wal /srv/archive --decode-only -o json`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if f.base == "" || f.wal == "" {
				return usageError{errors.New("--base and --wal are needed")}
			}
			limitMemory(f.memory)
			r, err := f.run(cmd.Context())
			if err != nil {
				return err
			}
			return g.print(cmd.OutOrStdout(), r, r.table)
		},
	}
	fl := c.Flags()
	fl.StringVar(&f.base, "base", "", "data `directory` that was stopped, or unpacked base backup")
	fl.StringVar(&f.wal, "wal", "", "`directory` with all segments from the base's checkpoint on")
	fl.StringVar(&f.store, "store", "", "`directory` for the versions, absent or empty (default: a temporary one, removed at the end)")
	fl.BoolVar(&f.decodeOnly, "decode-only", false, "own nothing: decode and filter only")
	fl.Int64Var(&f.cacheBytes, "cache", 96<<20, "`bytes` of the store's block cache")
	fl.Int64Var(&f.runBytes, "run", 0, "`bytes` of versions gathered in memory before they become a table (0: the default)")
	fl.Int64Var(&f.memory, "memory", 288<<20, "`bytes` of memory that the garbage collector aims to stay below")
	fl.StringVar(&f.profile, "cpu-profile", "", "`file` for a CPU profile of the measured part")
	return c
}

func (f *ingestFlags) run(ctx context.Context) (*ingestResult, error) {
	src, err := offline.Open(f.base, f.wal)
	if err != nil {
		return nil, err
	}
	if f.decodeOnly {
		return f.decode(ctx, src)
	}
	if f.store == "" {
		dir, err := os.MkdirTemp("", "everpage-bench-")
		if err != nil {
			return nil, err
		}
		defer os.RemoveAll(dir)
		f.store = dir
	}
	return f.ingest(ctx, src)
}

// benchBranch is the branch that is written.
const benchBranch = 1

func (f *ingestFlags) ingest(ctx context.Context, src *offline.Source) (res *ingestResult, err error) {
	store, err := chunk.Open(chunk.Options{
		Dir: filepath.Join(f.store, "store"), Redoer: redo.Redoer{Major: src.Control.Major}, Checksum: pg.Checksum, CacheBytes: f.cacheBytes, RunBytes: f.runBytes,
	})
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, store.Close()) }()
	res = &ingestResult{Mode: "ingest", Start: src.Redo}
	began := time.Now()
	im, err := src.Import(ctx, store, benchBranch)
	if err != nil {
		return nil, err
	}
	if err := store.Flush(); err != nil {
		return nil, err
	}
	res.ImportSeconds, res.ImportBytes = time.Since(began).Seconds(), im.Bytes
	p, err := ingest.Open(store, ingest.Options{Branch: benchBranch, Major: src.Control.Major})
	if err != nil {
		return nil, err
	}
	defer p.Close()
	reader, dir, err := src.Reader(src.Redo)
	if err != nil {
		return nil, err
	}
	defer dir.Close()
	err = f.measure(res, func() error {
		began := time.Now()
		err := p.Drain(ctx, reader)
		if !wal.IsEnd(err) {
			return err
		}
		res.EndReason = err.Error()
		res.ReadSeconds = time.Since(began).Seconds()
		return store.Flush()
	})
	if err != nil {
		return nil, err
	}
	durable, _ := store.Durable(benchBranch)
	if end := reader.Position(); durable.Readable < end {
		return nil, fmt.Errorf("WAL was read up to %s, but is durable up to %s only", end, durable.Readable)
	}
	st := store.Stats()
	res.Records, res.StoreBytes, res.WrittenBytes, res.Images = p.Records, st.DiskBytes, st.Written, st.Images
	res.finish(reader.Position())
	return res, nil
}

func (f *ingestFlags) decode(ctx context.Context, src *offline.Source) (*ingestResult, error) {
	reader, dir, err := src.Reader(src.Redo)
	if err != nil {
		return nil, err
	}
	defer dir.Close()
	state := redo.NewControlState(src.Control.Copy, src.Checkpoint, &src.Control)
	// A cluster of two nodes, of which this one owns no shard.
	shards := placement.Single(placement.Node{}, placement.DefaultShards, pg.SegmentBlocks)
	others := make([]bool, len(shards.Replicas))
	owns := func(key pg.PageKey) bool { return others[shards.Shard(key)] }
	res := &ingestResult{Mode: "decode", Start: src.Redo}
	var s ingest.Scanned
	err = f.measure(res, func() error {
		s, err = ingest.Scan(ctx, reader, &state, owns)
		if wal.IsEnd(err) {
			res.EndReason = err.Error()
			return nil
		}
		return err
	})
	if err != nil {
		return nil, err
	}
	if s.Owned != 0 {
		return nil, fmt.Errorf("%d pages passed a filter that lets none pass", s.Owned)
	}
	res.Records, res.PageChanges = s.Records, s.Pages
	res.finish(s.End)
	return res, nil
}

// measure times fn, and profiles it where that was asked for.
func (f *ingestFlags) measure(res *ingestResult, fn func() error) error {
	if f.profile != "" {
		out, err := os.Create(f.profile)
		if err != nil {
			return err
		}
		defer out.Close()
		if err := pprof.StartCPUProfile(out); err != nil {
			return err
		}
		defer pprof.StopCPUProfile()
	}
	cpu, began := cpuTime(), time.Now()
	err := fn()
	res.Seconds, res.CPUSeconds = time.Since(began).Seconds(), (cpuTime() - cpu).Seconds()
	return err
}

func (r *ingestResult) finish(end pg.LSN) {
	r.End, r.WALBytes = end, uint64(end-r.Start)
	r.MBPerSecond, r.MBPerCPU = float64(r.WALBytes)/1e6/r.Seconds, float64(r.WALBytes)/1e6/r.CPUSeconds
	r.PeakRSSBytes = peakRSS()
}

func (r *ingestResult) table(w io.Writer) error {
	if r.Mode == "ingest" {
		fmt.Fprintf(w, "import: %s in %.2f s\n", size(r.ImportBytes), r.ImportSeconds)
	}
	fmt.Fprintf(w, "%s: %s to %s, %s of WAL, %d records (%s)\n", r.Mode, r.Start, r.End, size(r.WALBytes), r.Records, r.EndReason)
	fmt.Fprintf(w, "%.2f s (%.2f s of CPU): %.1f MB/s, %.1f MB a CPU second, %.3f µs a record\n", r.Seconds, r.CPUSeconds, r.MBPerSecond, r.MBPerCPU,
		r.Seconds*1e6/float64(max(1, r.Records)))
	if r.Mode == "ingest" {
		fmt.Fprintf(w, "readable after %.2f s; store %s, %s written, %d images added; peak memory %s\n", r.ReadSeconds, size(r.StoreBytes), size(r.WrittenBytes),
			r.Images, size(r.PeakRSSBytes))
	}
	return nil
}

// cpuTime is the processor time that this process has used.
func cpuTime() time.Duration {
	var u syscall.Rusage
	if err := syscall.Getrusage(syscall.RUSAGE_SELF, &u); err != nil {
		return 0
	}
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}

// peakRSS is the largest resident set that this process had, bytes.
func peakRSS() uint64 {
	var u syscall.Rusage
	if err := syscall.Getrusage(syscall.RUSAGE_SELF, &u); err != nil {
		return 0
	}
	return uint64(u.Maxrss) * 1024
}
