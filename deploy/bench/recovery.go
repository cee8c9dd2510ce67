package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"syscall"
	"time"

	"everpage/deploy/pgtest"
	"everpage/wal/pg"
)

// walKind is one kind of WAL.
type walKind struct {
	name     string
	settings map[string]string
	// crashed: the peer recovers the directory as the crash left it. Else, since a crash leaves only what follows the last checkpoint to recover, the
	// peer gets the directory as it was before the load, with all the WAL, marked as one that was not shut down.
	crashed bool
}

// common to both kinds; what else a server does by itself is left at its defaults.
var walSettings = map[string]string{
	"shared_buffers":     "512MB",
	"fsync":              "off",
	"synchronous_commit": "off",
	"wal_level":          "replica",
	"wal_recycle":        "off",
	"wal_keep_size":      "200GB",
	"max_wal_senders":    "5",
}

var (
	smallRecords = walKind{name: "small records", crashed: true, settings: map[string]string{"checkpoint_timeout": "1d", "max_wal_size": "200GB"}}
	imageHeavy   = walKind{name: "image-heavy", settings: map[string]string{"checkpoint_timeout": "30s", "max_wal_size": "64MB", "min_wal_size": "32MB"}}
)

// corpus is a base and the WAL that a load wrote after it.
type corpus struct {
	base    string // stopped before the load
	crashed string // killed at the end of the load
	wal     string
}

// makeCorpus loads a server with pgbench until it has written so much WAL, and kills it.
func (b *bench) makeCorpus(ctx context.Context, k walKind, scale int, bytes int64) (c corpus, err error) {
	dir := filepath.Join(b.work, strings.ReplaceAll(k.name, " ", "-"))
	settings := pgtest.Merge(walSettings, k.settings)
	s, err := pgtest.Start(ctx, pgtest.Config{Dir: dir, Settings: settings})
	if err != nil {
		return c, err
	}
	defer func() { err = errors.Join(err, s.Close()) }()
	if b.report.Postgres, err = s.Value(ctx, "postgres", "show server_version"); err != nil {
		return c, err
	}
	progress("%s: making a database of scale %d and %d MB of WAL", k.name, scale, bytes>>20)
	if _, err := s.Pgbench(ctx, "-i", "-q", "-s", strconv.Itoa(scale)); err != nil {
		return c, err
	}
	if err := s.Stop(ctx, pgtest.Fast); err != nil {
		return c, err
	}
	c = corpus{base: filepath.Join(dir, "base"), crashed: s.DataDir(), wal: filepath.Join(dir, "wal")}
	if err := s.CopyCold(c.base); err != nil {
		return c, err
	}
	if err := s.StartAgain(ctx); err != nil {
		return c, err
	}
	if err := b.load(ctx, s, bytes); err != nil {
		return c, err
	}
	if err := s.Kill9(ctx); err != nil {
		return c, err
	}
	return c, s.KeepWAL(c.wal)
}

// load runs pgbench until so much WAL was written.
func (b *bench) load(ctx context.Context, s *pgtest.Server, bytes int64) error {
	start, err := walPosition(ctx, s)
	if err != nil {
		return err
	}
	seconds := 2
	for i := int64(0); ; i++ {
		began := time.Now()
		if _, err := s.Pgbench(ctx, "-n", "-c", "4", "-j", "1", "-M", "prepared", "-T", strconv.Itoa(seconds), "--random-seed", strconv.FormatInt(b.seed+i, 10)); err != nil {
			return err
		}
		at, err := walPosition(ctx, s)
		if err != nil {
			return err
		}
		done := int64(at - start)
		if done >= bytes {
			return nil
		}
		rate := float64(done) / float64(i+1) / time.Since(began).Seconds()
		seconds = max(1, min(20, int(float64(bytes-done)/max(rate, 1e6))))
	}
}

func walPosition(ctx context.Context, s *pgtest.Server) (pg.LSN, error) {
	v, err := s.Value(ctx, "postgres", "select pg_current_wal_flush_lsn()")
	if err != nil {
		return 0, err
	}
	return pg.ParseLSN(v)
}

// recovery measures ingest beside PostgreSQL's own recovery of the same WAL, and decoding of it.
func (b *bench) recovery(ctx context.Context, k walKind) error {
	scale, bytes := b.smallScale, b.smallWAL
	if !k.crashed {
		scale, bytes = b.imageScale, b.imageWAL
	}
	c, err := b.makeCorpus(ctx, k, scale, bytes)
	if err != nil {
		return err
	}
	if !b.keep {
		defer os.RemoveAll(filepath.Dir(c.base))
	}
	var recovered, recoveredCPU, ours, oursCPU, decoded, imported, peak []float64
	var last ingestResult
	for i := range b.runs {
		p, err := b.recover(ctx, k, c)
		if err != nil {
			return fmt.Errorf("crash recovery: %w", err)
		}
		r, err := b.ingest(ctx, c)
		if err != nil {
			return err
		}
		d, err := b.ingest(ctx, c, "--decode-only")
		if err != nil {
			return err
		}
		if p.end != r.End && (p.end > r.End || r.End-p.end > 16*pg.BlockSize) {
			return fmt.Errorf("PostgreSQL recovered up to %s, everpage ingested up to %s: not the same WAL", p.end, r.End)
		}
		mb := float64(r.WALBytes) / 1e6
		recovered, recoveredCPU = append(recovered, mb/p.elapsed), append(recoveredCPU, mb/p.cpu)
		ours, oursCPU, decoded = append(ours, r.MBPerSecond), append(oursCPU, r.MBPerCPU), append(decoded, d.MBPerCPU)
		imported, peak = append(imported, float64(r.ImportBytes)/1e6/r.ImportSeconds), append(peak, float64(r.PeakRSSBytes)/(1<<20))
		last = r
		progress("%s, run %d: PostgreSQL %.2f s, everpage %.2f s, decode %.2f s of CPU", k.name, i+1, p.elapsed, r.Seconds, d.CPUSeconds)
	}
	peer, we := of("PostgreSQL's recovery", "MB/s", recovered...), of("ingest", "MB/s", ours...)
	ratio := we.Median / peer.Median
	note := fmt.Sprintf("%d MB of WAL, %d records, %.0f bytes each; PostgreSQL took %.2f µs a record, everpage %.2f µs; "+
		"PostgreSQL's recovery ends with its pages in memory (fsync=off), ours with all versions in tables that are on disk. Store afterwards %d MB, import included.",
		last.WALBytes>>20, last.Records, float64(last.WALBytes)/float64(last.Records), float64(last.WALBytes)/peer.Median/float64(last.Records),
		float64(last.WALBytes)/we.Median/float64(last.Records), last.StoreBytes>>20)
	b.report.add("ingest, "+k.name, "≥ 1× (aim 3×)", ratio >= 1, ratio, note, we, peer)
	cpu, peerCPU := of("ingest", "MB a CPU second", oursCPU...), of("PostgreSQL's recovery", "MB a CPU second", recoveredCPU...)
	b.report.add("ingest by CPU time, "+k.name, "", true, cpu.Median/peerCPU.Median, "", cpu, peerCPU)
	dec := of("decode and filter", "MB/s a core", decoded...)
	b.report.add("decode + filter, nothing owned, "+k.name, "≥ 500 MB/s", dec.Median >= 500, 0, "", dec)
	b.report.add("import of the base, "+k.name, "", true, 0, "", of("import", "MB/s", imported...))
	b.report.add("peak memory of bench ingest, "+k.name, "", true, 0, "", of("peak", "MiB", peak...))
	return nil
}

// recovered is how long a server's crash recovery took, in seconds.
type recovered struct {
	elapsed, cpu float64
	end          pg.LSN
}

var (
	redoDone   = regexp.MustCompile(`redo done at ([0-9A-F]+/[0-9A-F]+) system usage: CPU: user: ([0-9.]+) s, system: ([0-9.]+) s, elapsed: ([0-9.]+) s`)
	redoStarts = regexp.MustCompile(`redo starts at`)
)

// recover lets a stock server recover a copy of the crashed directory.
func (b *bench) recover(ctx context.Context, k walKind, c corpus) (r recovered, err error) {
	dir := filepath.Join(b.work, "recovery")
	data := filepath.Join(dir, "data")
	defer os.RemoveAll(dir)
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return r, err
	}
	source := c.crashed
	if !k.crashed {
		source = c.base
	}
	if err := copyDir(ctx, source, data); err != nil {
		return r, err
	}
	if !k.crashed {
		if err := copyDir(ctx, c.wal+"/.", filepath.Join(data, "pg_wal")); err != nil {
			return r, err
		}
		if err := markRunning(data); err != nil {
			return r, err
		}
	}
	settle()
	// What its own checkpoints would do while it recovers is left out: they would only cost it time.
	settings := pgtest.Merge(walSettings, map[string]string{"checkpoint_timeout": "1d", "max_wal_size": "200GB"})
	s, err := pgtest.Open(ctx, data, pgtest.Config{Dir: filepath.Join(dir, "server"), Settings: settings, ReadyTimeout: 20 * time.Minute})
	if err != nil {
		return r, err
	}
	defer func() { err = errors.Join(err, s.Close()) }()
	log, err := os.ReadFile(s.LogFile())
	if err != nil {
		return r, err
	}
	m := redoDone.FindStringSubmatch(string(log))
	if m == nil || !redoStarts.Match(log) {
		return r, fmt.Errorf("the server's log tells of no recovery: %s", s.LogTail())
	}
	var v [3]float64
	for i := range v {
		if v[i], err = strconv.ParseFloat(m[i+2], 64); err != nil {
			return r, err
		}
	}
	r.cpu, r.elapsed = v[0]+v[1], v[2]
	at, err := pg.ParseLSN(m[1]) // the start of the last record
	r.end = at
	return r, errors.Join(err, s.Kill9(ctx))
}

// markRunning makes a directory that was shut down look like one that crashed right after the checkpoint that it ended with.
func markRunning(data string) error {
	name := filepath.Join(data, "global", "pg_control")
	b, err := os.ReadFile(name)
	if err != nil {
		return err
	}
	c, err := pg.ReadControl(b)
	if err != nil {
		return err
	}
	c.State = pg.DBInProduction
	if b, err = c.Encode(); err != nil {
		return err
	}
	return os.WriteFile(name, b, 0o600)
}

// ingestResult is what everpage bench ingest prints, as far as it is used here.
type ingestResult struct {
	End           pg.LSN  `json:"end"`
	Records       uint64  `json:"records"`
	WALBytes      uint64  `json:"wal_bytes"`
	ImportSeconds float64 `json:"import_seconds"`
	ImportBytes   int64   `json:"import_bytes"`
	Seconds       float64 `json:"seconds"`
	CPUSeconds    float64 `json:"cpu_seconds"`
	MBPerSecond   float64 `json:"mb_per_second"`
	MBPerCPU      float64 `json:"mb_per_cpu_second"`
	StoreBytes    uint64  `json:"store_bytes"`
	PeakRSSBytes  uint64  `json:"peak_rss_bytes"`
}

func (b *bench) ingest(ctx context.Context, c corpus, more ...string) (r ingestResult, err error) {
	settle()
	store := filepath.Join(b.work, "store")
	defer os.RemoveAll(store)
	return r, b.command(ctx, &r, append([]string{"bench", "ingest", "--base", c.base, "--wal", c.wal, "--store", store}, more...)...)
}

// command runs the binary under test and reads the JSON that it prints.
func (b *bench) command(ctx context.Context, into any, args ...string) error {
	cmd := exec.CommandContext(ctx, b.everpage, append(args, "-o", "json", "--quiet")...)
	cmd.Stderr = os.Stderr
	out, err := cmd.Output()
	if err != nil {
		return fmt.Errorf("everpage %v: %w", args, err)
	}
	if into == nil {
		return nil
	}
	if err := json.Unmarshal(out, into); err != nil {
		return fmt.Errorf("everpage %v printed %q: %w", args, out, err)
	}
	return nil
}

// copyDir copies a directory with cp, which knows every trick of the file system.
func copyDir(ctx context.Context, from, to string) error {
	if out, err := exec.CommandContext(ctx, "cp", "-a", from, to).CombinedOutput(); err != nil {
		return fmt.Errorf("copy %s: %w: %s", from, err, out)
	}
	return nil
}

// settle waits until what was written before is on disk, so that it disturbs no measurement.
func settle() { syscall.Sync() }
