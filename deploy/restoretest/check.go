package restoretest

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"everpage/deploy/pgtest"
	"everpage/wal/pg"
)

// Checks are those that take long. The others are always made: the server starts without recovery, pgbench's invariant holds, prepared transactions
// can be committed.
type Checks struct {
	Amcheck bool // every index against its table
	Stock   bool // dump (digests from 16 on), prepared transactions and counters equal those of a stock server recovered to the same LSN
	Crash   bool // kill -9 under load, then a restart
	Standby bool // one made by pg_basebackup follows the restored server
}

// Result tells what was found at an LSN.
type Result struct {
	LSN      pg.LSN
	Checks   Checks
	Files    int
	Bytes    int64
	Restore  time.Duration // of the command
	Start    time.Duration // of the stock server, until it answered
	History  int           // rows that pgbench had written
	Prepared []string      // transactions that were committed
	Dump     int           // bytes of pg_dumpall's text that are equal, with Checks.Stock
	Digest   bool          // they are of digests instead
}

func (r *Result) String() string {
	var b strings.Builder
	fmt.Fprintf(&b, "lsn=%s files=%d bytes=%d restore=%.1fs start=%.1fs history=%d prepared=%s", r.LSN, r.Files, r.Bytes, r.Restore.Seconds(), r.Start.Seconds(),
		r.History, strings.Join(r.Prepared, ","))
	for _, c := range []struct {
		on   bool
		name string
	}{{r.Checks.Amcheck, "amcheck"}, {r.Checks.Crash, "crash"}, {r.Checks.Standby, "standby"}} {
		if c.on {
			b.WriteString(" " + c.name + "=ok")
		}
	}
	if r.Checks.Stock {
		name := "dump"
		if r.Digest {
			name = "digest"
		}
		fmt.Fprintf(&b, " %s=equal(%d)", name, r.Dump)
	}
	return b.String()
}

// settings of servers that are compared: nothing is done that was not asked for.
var settings = map[string]string{"autovacuum": "off", "wal_consistency_checking": ""}

// Check restores at an LSN and makes the checks. What it writes is removed if all is right.
func (h *History) Check(ctx context.Context, lsn pg.LSN, c Checks) (res *Result, err error) {
	dir := filepath.Join(h.dir, "restored-"+strings.ReplaceAll(lsn.String(), "/", "-"))
	defer func() {
		if err == nil {
			err = os.RemoveAll(dir)
		} else {
			err = fmt.Errorf("at %s: %w (kept in %s)", lsn, err, dir)
		}
	}()
	res = &Result{LSN: lsn, Checks: c}
	data := filepath.Join(dir, "data")
	var out struct {
		LSN   pg.LSN
		Files int
		Bytes int64
	}
	began := time.Now()
	if err := h.Node.JSON(ctx, &out, "restore", data, "--lsn", lsn.String(), "--quiet"); err != nil {
		return res, err
	}
	res.Files, res.Bytes, res.Restore = out.Files, out.Bytes, time.Since(began)
	if out.LSN != lsn {
		return res, fmt.Errorf("restored at %s", out.LSN)
	}
	began = time.Now()
	s, err := pgtest.Open(ctx, data, pgtest.Config{Major: h.major, Dir: filepath.Join(dir, "server"), Settings: settings})
	if err != nil {
		return res, err
	}
	defer func() { err = errors.Join(err, s.Close()) }()
	res.Start = time.Since(began)
	if err := NoRecovery(s); err != nil {
		return res, err
	}
	if res.History, err = Balanced(ctx, s); err != nil {
		return res, err
	}
	if err := h.againstStock(ctx, s, filepath.Join(dir, "stock"), res); err != nil {
		return res, err
	}
	if c.Crash {
		if err := crash(ctx, s, res.History); err != nil {
			return res, fmt.Errorf("crash: %w", err)
		}
	}
	if c.Standby {
		if err := standby(ctx, s, filepath.Join(dir, "standby")); err != nil {
			return res, err
		}
	}
	if c.Amcheck {
		if out, err := s.Amcheck(ctx); err != nil {
			return res, fmt.Errorf("%w\n%s", err, out)
		}
	}
	return res, s.Stop(ctx, pgtest.Fast)
}

// againstStock compares a restored server with a stock one, and commits the prepared transactions in both.
func (h *History) againstStock(ctx context.Context, s *pgtest.Server, dir string, res *Result) error {
	if !res.Checks.Stock {
		var err error
		res.Prepared, err = CommitPrepared(ctx, s)
		return err
	}
	stock, err := pgtest.RecoverTo(ctx, pgtest.Recovery{
		Config: pgtest.Config{Major: h.major, Dir: dir}, Base: h.base, WAL: h.wal, LSN: res.LSN.String(), Promote: true, Locations: h.locations,
	})
	if err != nil {
		return err
	}
	err = h.compare(ctx, s, stock, res)
	return errors.Join(err, stock.Close())
}

func (h *History) compare(ctx context.Context, s, stock *pgtest.Server, res *Result) error {
	for _, query := range []struct{ what, sql string }{
		{"next transaction", "select txid_snapshot_xmax(txid_current_snapshot())"},
		{"prepared transactions", "select transaction, gid, prepared, owner, database from pg_prepared_xacts order by gid"},
		{"databases", "select oid, datname, datfrozenxid, datminmxid, dattablespace from pg_database order by oid"},
		{"replication origins", "select external_id, remote_lsn from pg_replication_origin_status order by 1"},
		{"counters", `checkpoint; select next_xid, next_oid, next_multixact_id, next_multi_offset, oldest_xid, oldest_xid_dbid, oldest_multi_xid, oldest_multi_dbid,
			newest_commit_ts_xid, full_page_writes from pg_control_checkpoint()`},
	} {
		ours, err := s.SQL(ctx, "postgres", query.sql)
		if err != nil {
			return err
		}
		theirs, err := stock.SQL(ctx, "postgres", query.sql)
		if err != nil {
			return err
		}
		if a, b := fmt.Sprint(ours), fmt.Sprint(theirs); a != b {
			return fmt.Errorf("%s differ: restored %s, stock %s", query.what, a, b)
		}
	}
	if err := compareOldestCommitTs(ctx, s, stock); err != nil {
		return err
	}
	var err error
	if res.Prepared, err = CommitPrepared(ctx, s); err != nil {
		return err
	}
	theirs, err := CommitPrepared(ctx, stock)
	if err != nil {
		return err
	}
	if !slices.Equal(res.Prepared, theirs) {
		return fmt.Errorf("prepared transactions differ: restored %q, stock %q", res.Prepared, theirs)
	}
	// PostgreSQL 15 does not write the init fork of an unlogged sequence to disk before the end of recovery copies it: a promoted server reads such
	// sequences as empty until the next crash copies it again (seq_redo).
	if _, err := stock.SQL(ctx, "postgres", "checkpoint"); err != nil {
		return err
	}
	if err := errors.Join(stock.Stop(ctx, pgtest.Immediate), stock.StartAgain(ctx)); err != nil {
		return err
	}
	contents, what := dump, "dumps"
	if res.Digest = h.major > lastDumped; res.Digest {
		contents, what = digest, "digests"
	}
	ours, err := contents(ctx, s)
	if err != nil {
		return fmt.Errorf("restored: %w", err)
	}
	want, err := contents(ctx, stock)
	if err != nil {
		return fmt.Errorf("stock: %w", err)
	}
	res.Dump = len(ours)
	return firstDifference(what, ours, want)
}

// compareOldestCommitTs compares from which transaction on commit times are kept. A primary advances it without a record where no segment can be removed
// (vac_truncate_clog), and a server takes it from the checkpoint that it starts from, not from those that it replays: the stock server, which started
// at an older one, may be behind, but never ahead.
func compareOldestCommitTs(ctx context.Context, s, stock *pgtest.Server) error {
	var oldest [2]uint64
	for i, server := range []*pgtest.Server{s, stock} {
		text, err := server.Value(ctx, "postgres", "select oldest_commit_ts_xid from pg_control_checkpoint()")
		if err != nil {
			return err
		}
		if oldest[i], err = strconv.ParseUint(text, 10, 32); err != nil {
			return err
		}
	}
	next, err := s.Value(ctx, "postgres", "select split_part(next_xid, ':', 2) from pg_control_checkpoint()")
	if err != nil {
		return err
	}
	if limit, err := strconv.ParseUint(next, 10, 32); err != nil || oldest[0] < oldest[1] || oldest[0] >= limit {
		return fmt.Errorf("the oldest transaction with a commit time differs: restored %d, stock %d, next transaction %s", oldest[0], oldest[1], next)
	}
	return nil
}

// dump is pg_dumpall's text, without the places of tablespaces and the keys that it makes up for psql.
func dump(ctx context.Context, s *pgtest.Server) (string, error) {
	text, err := s.Client(ctx, "pg_dumpall", "--no-sync")
	if err != nil {
		return "", err
	}
	var b strings.Builder
	for line := range strings.Lines(text) {
		if head, _, ok := strings.Cut(line, " LOCATION "); ok && strings.HasPrefix(line, "CREATE TABLESPACE") {
			line = head + "\n"
		}
		if strings.HasPrefix(line, `\restrict `) || strings.HasPrefix(line, `\unrestrict `) {
			continue
		}
		b.WriteString(line)
	}
	return b.String(), nil
}

func firstDifference(what, ours, theirs string) error {
	if ours == theirs {
		return nil
	}
	a, b := strings.Split(ours, "\n"), strings.Split(theirs, "\n")
	i := 0
	for i < len(a) && i < len(b) && a[i] == b[i] {
		i++
	}
	line := func(lines []string) string {
		if i == len(lines) {
			return "the end"
		}
		return strconv.Quote(lines[i])
	}
	return fmt.Errorf("the %s differ from line %d on: restored %s, stock %s", what, i+1, line(a), line(b))
}

// lastStart is a server's log since it was started last.
func lastStart(s *pgtest.Server) (string, error) {
	log, err := os.ReadFile(s.LogFile())
	if err != nil {
		return "", err
	}
	text := string(log)
	return text[max(0, strings.LastIndex(text, "starting PostgreSQL")):], nil
}

// NoRecovery checks in a server's log that its last start began with a cleanly stopped data directory.
func NoRecovery(s *pgtest.Server) error {
	text, err := lastStart(s)
	if err != nil {
		return err
	}
	text = strings.ReplaceAll(text, "FATAL:  the database system is starting up", "") // what clients that came too early were told
	if !strings.Contains(text, "database system was shut down at") {
		return fmt.Errorf("the server's log does not say that it was shut down: %s", text)
	}
	for _, word := range []string{"redo starts", "recovery", "not properly shut down", "PANIC", "FATAL", "WARNING"} {
		if strings.Contains(text, word) {
			return fmt.Errorf("the server's log of a start without recovery says %q: %s", word, text)
		}
	}
	return nil
}

// CommitPrepared commits all prepared transactions, each in its database, and returns their names in order.
func CommitPrepared(ctx context.Context, s *pgtest.Server) ([]string, error) {
	rows, err := s.SQL(ctx, "postgres", "select database, gid from pg_prepared_xacts order by gid")
	if err != nil {
		return nil, err
	}
	var gids []string
	for _, row := range rows {
		if _, err := s.SQL(ctx, row[0], "commit prepared '"+strings.ReplaceAll(row[1], "'", "''")+"'"); err != nil {
			return nil, err
		}
		gids = append(gids, row[1])
	}
	return gids, nil
}

// pgbenchTables are what `pgbench -i` makes, each in a transaction of its own, before it fills all of them in another.
var pgbenchTables = []string{"pgbench_history", "pgbench_tellers", "pgbench_accounts", "pgbench_branches"}

// Balanced checks pgbench's invariant, where its tables are there, and returns how many rows its history has. At LSNs at which only some of the tables
// had been made, those must be empty.
func Balanced(ctx context.Context, s *pgtest.Server) (history int, err error) {
	rows, err := s.SQL(ctx, "postgres", "select from pg_database where datname = 'bench'")
	if err != nil || len(rows) == 0 {
		return 0, err
	}
	there, err := s.SQL(ctx, "bench", "select relname from pg_class where relname in ('"+strings.Join(pgbenchTables, "', '")+"')")
	if err != nil {
		return 0, err
	}
	if len(there) < len(pgbenchTables) {
		for _, row := range there {
			if n, err := s.Value(ctx, "bench", "select count(*) from "+row[0]); err != nil || n != "0" {
				return 0, errors.Join(err, fmt.Errorf("%s has %q rows where only %v of pgbench's tables are there", row[0], n, there))
			}
		}
		return 0, nil
	}
	rows, err = s.SQL(ctx, "bench", `set enable_indexscan = off; set enable_indexonlyscan = off; set enable_bitmapscan = off;
		select (select coalesce(sum(abalance), 0) from pgbench_accounts), (select coalesce(sum(tbalance), 0) from pgbench_tellers),
			(select coalesce(sum(bbalance), 0) from pgbench_branches), coalesce(sum(delta), 0), count(*) from pgbench_history`)
	if err != nil {
		return 0, err
	}
	sums := rows[0]
	if sums[0] != sums[1] || sums[0] != sums[2] || sums[0] != sums[3] {
		return 0, fmt.Errorf("pgbench's balances of accounts, tellers, branches and history disagree: %v", sums[:4])
	}
	return strconv.Atoi(sums[4])
}

const crashTransactions = 20

// crash kills a server that has been written to and starts it again.
func crash(ctx context.Context, s *pgtest.Server, before int) error {
	if before > 0 {
		if _, err := s.Pgbench(ctx, "-n", "-c", "2", "-t", strconv.Itoa(crashTransactions/2), "bench"); err != nil {
			return err
		}
	}
	if _, err := s.SQL(ctx, "postgres", "create table written_before_the_crash as select 1 as a"); err != nil {
		return err
	}
	if err := s.Kill9(ctx); err != nil {
		return err
	}
	if err := s.StartAgain(ctx); err != nil {
		return err
	}
	text, err := lastStart(s)
	if err != nil {
		return err
	}
	if !strings.Contains(text, "redo starts at") {
		return fmt.Errorf("the server did not recover: %s", text)
	}
	if _, err := s.SQL(ctx, "postgres", "select a from written_before_the_crash"); err != nil {
		return err
	}
	after, err := Balanced(ctx, s)
	if err == nil && before > 0 && after != before+crashTransactions {
		err = fmt.Errorf("pgbench's history has %d rows, %d before the crash and its %d transactions", after, before, crashTransactions)
	}
	return err
}

// standby makes a standby of a server by pg_basebackup and checks that it follows.
func standby(ctx context.Context, s *pgtest.Server, dir string) (err error) {
	st, err := s.Standby(ctx, "standby", pgtest.Config{Dir: dir, Settings: settings})
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, st.Close()) }()
	if _, err := s.SQL(ctx, "postgres", "create table written_for_the_standby as select 7 as a"); err != nil {
		return err
	}
	at, err := s.CurrentLSN(ctx)
	if err != nil {
		return err
	}
	wait, cancel := context.WithTimeout(ctx, time.Minute)
	defer cancel()
	if err := st.WaitReplayed(wait, at); err != nil {
		return err
	}
	v, err := st.Value(ctx, "postgres", "select a from written_for_the_standby")
	if err == nil && v != "7" {
		err = fmt.Errorf("the standby reads %s where 7 was written", v)
	}
	if err != nil {
		return err
	}
	_, err = Balanced(ctx, st)
	return err
}
