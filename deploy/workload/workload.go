// Package workload makes a real server write WAL of nearly every record type, and keeps what a test needs to hold a
// replay of that WAL against: the data directory before, the WAL, the data directory after.
package workload

import (
	"context"
	"embed"
	"errors"
	"fmt"
	"io/fs"
	"path/filepath"
	"strconv"
	"strings"

	"everpage/deploy/pgtest"
)

// Which names a workload.
type Which string

// Mixed is ordinary DDL and DML on heaps and B-trees beside pgbench, by several sessions at once: transactions of all
// kinds, vacuum, truncation, databases, tablespaces, sequences. Indexes has the other index methods: hash, GIN, GiST,
// SP-GiST, BRIN, bloom. Concurrent is the part of Mixed in which sessions lock the same rows. TPCB is pgbench alone. Large makes relations of more than a gigabyte and posting trees of
// three levels: 2 GB of WAL and 6 GB on disk in all.
const (
	Mixed      Which = "mixed"
	Indexes    Which = "indexes"
	Concurrent Which = "concurrent"
	TPCB       Which = "tpcb"
	Large      Which = "large"
)

//go:embed sql
var scripts embed.FS

// Options say how much of a workload is run. The zero value is a small run.
type Options struct {
	// Seed makes the choices of the workload: random(), pgbench's. What the server does by itself (autovacuum, the order in
	// which sessions are scheduled) stays its own.
	Seed int64
	// Rows is the size of most tables. 0 means 400. Sections whose shape needs a certain number of rows have their own.
	Rows int
	// Rounds repeats the workload, each on relations of its own. 0 means 1.
	Rounds int
	// Transactions is how many transactions each of the four pgbench clients runs a round. 0 means 200.
	Transactions int
	// Scale is pgbench's. 0 means 1, which is 15 MB.
	Scale int
	// Burn is how many transaction ids Concurrent uses up at once, to fill pages of the commit log and of commit times.
	// 0 means 40000.
	Burn int
	// Dir holds the tablespaces and a scratch file. Empty means the directory "workload" beside the server's data directory.
	Dir string
}

func (o Options) withDefaults() Options {
	o.Rows = orDefault(o.Rows, 400)
	o.Rounds = orDefault(o.Rounds, 1)
	o.Transactions = orDefault(o.Transactions, 200)
	o.Scale = orDefault(o.Scale, 1)
	o.Burn = orDefault(o.Burn, 40000)
	return o
}

func orDefault(n, def int) int {
	if n == 0 {
		return def
	}
	return n
}

// Mark is a moment of a run.
type Mark struct {
	// Name is the section that had just ended.
	Name string
	// LSN lies between two records, all before it flushed.
	LSN string
}

// Result is what a run leaves beside the data.
type Result struct {
	Marks []Mark
	// Tablespaces are the locations that the WAL names. A server that replays it needs these directories.
	Tablespaces []string
	// Prepared are the transactions left prepared in database postgres.
	Prepared []string
}

// Run runs a workload in database postgres (pgbench's tables lie in a database bench) against a server with pgtest.OracleSettings or
// others with max_prepared_transactions. It ends at its first error.
func Run(ctx context.Context, s *pgtest.Server, which Which, o Options) (*Result, error) {
	r := &run{server: s, options: o.withDefaults(), result: &Result{}}
	if r.options.Dir == "" {
		r.options.Dir = filepath.Join(filepath.Dir(s.DataDir()), "workload")
	}
	if err := s.MakeDir(r.options.Dir); err != nil {
		return nil, fmt.Errorf("workload directory: %w", err)
	}
	round := map[Which]func(context.Context, int) error{
		Mixed: r.mixed, Indexes: r.indexes, Concurrent: r.concurrent, TPCB: r.tpcb, Large: r.large,
	}[which]
	if round == nil {
		return nil, fmt.Errorf("no workload %q", which)
	}
	for i := 1; i <= r.options.Rounds; i++ {
		if err := round(ctx, i); err != nil {
			return nil, fmt.Errorf("workload %s, seed %d, round %d: %w", which, o.Seed, i, err)
		}
	}
	return r.result, nil
}

// run is a workload under way.
type run struct {
	server  *pgtest.Server
	options Options
	result  *Result
}

func (r *run) mixed(ctx context.Context, round int) error {
	if round > 1 {
		if err := r.script(ctx, "mixed/00_next_round.sql", round, nil); err != nil {
			return err
		}
	}
	ts1, ts2 := fmt.Sprintf("w1_%d", round), fmt.Sprintf("w2_%d", round)
	for _, name := range []string{ts1, ts2} {
		if err := r.tablespace(ctx, name); err != nil {
			return err
		}
	}
	vars := map[string]string{
		"ts1": ts1, "ts2": ts2,
		"tmpcopy":    filepath.Join(r.options.Dir, "rows"),
		"strategies": strconv.FormatBool(r.server.Major() >= 15),
	}

	// pgbench goes on in its own database while everything else happens.
	benchCtx, cancel := context.WithCancel(ctx)
	bench := make(chan error, 1)
	if err := r.benchInit(ctx, round); err != nil {
		cancel()
		return err
	}
	go func() { bench <- r.benchRun(benchCtx, round) }()
	err := r.mixedSections(ctx, round, vars)
	if err != nil {
		cancel()
	}
	err = errors.Join(err, <-bench)
	cancel()
	if err != nil {
		return err
	}
	r.result.Prepared = []string{"p_stays"}
	return r.mark(ctx, fmt.Sprintf("mixed %d", round))
}

// quietly runs do without autovacuum: a worker's snapshot would keep the vacuums of do from removing what they are there to
// remove, and with that from writing their records.
func (r *run) quietly(ctx context.Context, do func() error) error {
	if err := r.setAutovacuum(ctx, "alter system set autovacuum = off", "not exists"); err != nil {
		return err
	}
	if err := do(); err != nil {
		return err
	}
	return r.setAutovacuum(ctx, "alter system reset autovacuum", "exists")
}

// setAutovacuum changes the setting and waits until the server's processes are there or gone.
func (r *run) setAutovacuum(ctx context.Context, sql, launched string) error {
	if _, err := r.server.SQL(ctx, "postgres", sql, "select pg_reload_conf()"); err != nil {
		return err
	}
	return r.server.WaitTrue(ctx, "select "+launched+" (select from pg_stat_activity where backend_type like 'autovacuum %')")
}

func (r *run) mixedSections(ctx context.Context, round int, vars map[string]string) error {
	err := r.quietly(ctx, func() error { return r.mixedScripts(ctx, round, vars, "10_btree", "20_heap") })
	if err != nil {
		return err
	}
	sections := []string{"30_storage"}
	if round == 1 {
		sections = append(sections, "40_catalog")
	}
	if err := r.mixedScripts(ctx, round, vars, sections...); err != nil {
		return err
	}
	if err := r.concurrent(ctx, round); err != nil {
		return err
	}
	return r.mixedScripts(ctx, round, vars, "50_databases", "60_xact")
}

func (r *run) mixedScripts(ctx context.Context, round int, vars map[string]string, names ...string) error {
	for _, name := range names {
		if err := r.script(ctx, "mixed/"+name+".sql", round, vars); err != nil {
			return err
		}
	}
	return nil
}

func (r *run) indexes(ctx context.Context, round int) error {
	return r.quietly(ctx, func() error { return r.indexScripts(ctx, round) })
}

func (r *run) indexScripts(ctx context.Context, round int) error {
	names, err := fs.Glob(scripts, "sql/indexes/*.sql")
	if err != nil {
		return err
	}
	for _, name := range names {
		if round == 1 && strings.HasSuffix(name, "/00_next_round.sql") {
			continue
		}
		if err := r.script(ctx, strings.TrimPrefix(name, "sql/"), round, nil); err != nil {
			return err
		}
	}
	return nil
}

func (r *run) tpcb(ctx context.Context, round int) error {
	if err := r.benchInit(ctx, round); err != nil {
		return err
	}
	if err := r.benchRun(ctx, round); err != nil {
		return err
	}
	return r.mark(ctx, fmt.Sprintf("tpcb %d", round))
}

// benchInit makes pgbench's tables in the first round.
func (r *run) benchInit(ctx context.Context, round int) error {
	if round > 1 {
		return nil
	}
	// After-images of a plain bulk load would be a large part of the WAL and prove little.
	_, err := r.server.SQL(ctx, "postgres", "create database bench", "alter database bench set wal_consistency_checking = ''")
	if err != nil {
		return err
	}
	if _, err := r.server.Pgbench(ctx, "-i", "-q", "-s", strconv.Itoa(r.options.Scale), "bench"); err != nil {
		return err
	}
	_, err = r.server.SQL(ctx, "postgres", "alter database bench reset wal_consistency_checking")
	return err
}

// benchRun keeps pgbench's invariant: at any LSN the balances of all three tables and the history agree.
func (r *run) benchRun(ctx context.Context, round int) error {
	_, err := r.server.Pgbench(ctx, "-n", "-c", "4", "-j", "1", "-t", strconv.Itoa(r.options.Transactions),
		"--random-seed="+r.seed(round), "bench")
	return err
}

func (r *run) seed(round int) string {
	return strconv.FormatUint(uint64(r.options.Seed)+uint64(round), 10)
}

// script runs one embedded file with psql, its random() seeded.
func (r *run) script(ctx context.Context, name string, round int, vars map[string]string) error {
	text, err := scripts.ReadFile("sql/" + name)
	if err != nil {
		return err
	}
	vars = pgtest.Merge(map[string]string{"n": strconv.Itoa(r.options.Rows), "round": strconv.Itoa(round)}, vars)
	// setseed takes -1 to 1.
	seed := float64((uint64(r.options.Seed)+uint64(round))%1_000_003) / 1_000_003
	if _, err := r.server.Psql(ctx, "postgres", fmt.Sprintf("select setseed(%.9f);\n%s", seed, text), vars); err != nil {
		return fmt.Errorf("%s: %w", name, err)
	}
	return r.mark(ctx, fmt.Sprintf("%s %d", strings.TrimSuffix(name, ".sql"), round))
}

func (r *run) tablespace(ctx context.Context, name string) error {
	location := filepath.Join(r.options.Dir, name)
	if err := r.server.MakeDir(location); err != nil {
		return err
	}
	quoted := strings.ReplaceAll(location, "'", "''")
	if _, err := r.server.SQL(ctx, "postgres", fmt.Sprintf("create tablespace %s location '%s'", name, quoted)); err != nil {
		return err
	}
	r.result.Tablespaces = append(r.result.Tablespaces, location)
	return nil
}

func (r *run) mark(ctx context.Context, name string) error {
	lsn, err := r.server.CurrentLSN(ctx)
	if err != nil {
		return fmt.Errorf("position after %s: %w", name, err)
	}
	r.result.Marks = append(r.result.Marks, Mark{Name: name, LSN: lsn})
	return nil
}
