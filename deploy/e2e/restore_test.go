package e2e

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"everpage/deploy/nodetest"
	"everpage/deploy/pgtest"
	"everpage/deploy/restoretest"
	"everpage/deploy/workload"
	"everpage/wal/pg"
)

// Directories at random LSNs of the mixed workload are held against stock servers recovered to the same ones. The long run does this at many more.
func TestRestoreAtRandomLSNs(t *testing.T) {
	t.Parallel()
	random := dice(t)
	h, err := restoretest.Make(t.Context(), t.TempDir(), restoretest.Options{
		Binary: everpage, InitdbArgs: []string{"--data-checksums"},
		Workload: workload.Options{Seed: random.Int64N(1 << 31), Rows: 200, Transactions: 600, Burn: 5000},
	})
	if err != nil {
		t.Fatal(err)
	}
	defer h.Close()
	checks := []restoretest.Checks{
		{Stock: true}, {Crash: true, Standby: true}, {Amcheck: true}, {Stock: true, Crash: true},
	}
	lsns, err := h.Boundaries(random, len(checks))
	if err != nil {
		t.Fatal(err)
	}
	random.Shuffle(len(checks), func(i, j int) { checks[i], checks[j] = checks[j], checks[i] })
	for i, lsn := range lsns {
		res, err := h.Check(t.Context(), lsn, checks[i])
		if err != nil {
			t.Fatal(err)
		}
		t.Log(res)
	}
}

// restoredServer starts a stock server on a restored directory and checks that it needs no recovery.
func restoredServer(t *testing.T, dir string) *pgtest.Server {
	t.Helper()
	s, err := pgtest.Open(t.Context(), dir, pgtest.Config{Dir: dir + ".server"})
	if err != nil {
		t.Fatal(err)
	}
	pgtest.CloseWith(t, s)
	if err := restoretest.NoRecovery(s); err != nil {
		t.Fatal(err)
	}
	return s
}

// restoreResult is what restore -o json prints, as far as it is looked at here.
type restoreResult struct {
	LSN      pg.LSN
	Timeline uint32
	Notes    []string
	Last     struct {
		Kind string
		XID  uint32
	} `json:"last_transaction"`
}

// A cluster with checksums, tablespaces and unlogged tables is restored while it is being written to.
func TestRestoreWhileIngesting(t *testing.T) {
	t.Parallel()
	ctx := t.Context()
	s := pgtest.New(t, pgtest.Config{Settings: primarySettings(), InitdbArgs: []string{"--data-checksums"}})
	n := newNode(t)
	attach(t, n, s)
	spaces := filepath.Join(t.TempDir(), "spaces")
	var locations []string
	for _, name := range []string{"beside", "mapped"} {
		location := filepath.Join(spaces, name)
		if err := s.MakeDir(location); err != nil {
			t.Fatal(err)
		}
		locations = append(locations, location)
		s.MustSQL(t, "postgres", fmt.Sprintf("create tablespace %s location '%s'", name, location),
			fmt.Sprintf("create table in_%s (a int primary key using index tablespace %[1]s, t text) tablespace %[1]s", name),
			fmt.Sprintf("insert into in_%s select g, repeat('x', 50) from generate_series(1, 3000) g", name))
	}
	s.MustSQL(t, "postgres", "create unlogged table fleeting (a int primary key)", "insert into fleeting select generate_series(1, 1000)", "create database bench")
	if _, err := s.Pgbench(ctx, "-i", "-q", "-s", "1", "bench"); err != nil {
		t.Fatal(err)
	}
	benchCtx, stop := context.WithCancel(ctx)
	bench := make(chan error, 1)
	go func() {
		_, err := s.Pgbench(benchCtx, "-n", "-c", "4", "-T", "600", "bench")
		bench <- err
	}()
	defer func() { stop(); <-bench }()
	if err := s.WaitTrue(ctx, "select count(*) >= 4 from pg_stat_activity where datname = 'bench'"); err != nil {
		t.Fatal(err)
	}
	caughtUp(t, n, s)

	// Two at once, from a node that goes on following.
	type outcome struct {
		restoreResult
		err error
	}
	mapped := filepath.Join(t.TempDir(), "elsewhere")
	dirs := []string{filepath.Join(t.TempDir(), "one"), filepath.Join(t.TempDir(), "two")}
	outcomes := make([]outcome, len(dirs))
	done := make(chan int)
	for i := range dirs {
		go func() {
			args := []string{"restore", dirs[i], "--quiet"}
			if i == 0 {
				args = append(args, "--tablespace-mapping", locations[1]+"="+mapped)
			}
			outcomes[i].err = n.JSON(ctx, &outcomes[i].restoreResult, args...)
			done <- i
		}()
	}
	for range dirs {
		<-done
	}
	select {
	case err := <-bench:
		t.Fatalf("pgbench ended: %v", err)
	default:
	}
	for i, o := range outcomes {
		if o.err != nil {
			t.Fatalf("restore to %s: %v", dirs[i], o.err)
		}
	}
	if at := caughtUp(t, n, s); at <= outcomes[0].LSN {
		t.Errorf("nothing was ingested behind %s while it was restored", outcomes[0].LSN)
	}
	if a, b := outcomes[0].Timeline, outcomes[1].Timeline; a == b || a < 2 || b < 2 {
		t.Errorf("two restores got timelines %d and %d", a, b)
	}
	for i, dir := range dirs {
		checksums, err := exec.CommandContext(ctx, filepath.Join(fetch(t), "pg_checksums"), "--check", "-D", dir).CombinedOutput()
		if err != nil || !bytes.Contains(checksums, []byte("Bad checksums:  0")) {
			t.Errorf("pg_checksums of %s: %v\n%s", dir, err, checksums)
		}
		want := map[string]bool{}
		for k, location := range locations {
			oid := s.MustSQL(t, "postgres", fmt.Sprintf("select oid from pg_tablespace where pg_tablespace_location(oid) = '%s'", location))[0][0]
			target := filepath.Join(dir+".tablespaces", oid)
			if i == 0 && k == 1 {
				target = mapped
			}
			if link, err := os.Readlink(filepath.Join(dir, "pg_tblspc", oid)); err != nil || link != target {
				t.Errorf("tablespace %s links to %s, want %s (%v)", oid, link, target, err)
			}
			want[oid] = true
		}
		if entries, err := os.ReadDir(filepath.Join(dir, "pg_tblspc")); err != nil || len(entries) != len(want) {
			t.Errorf("%d links in pg_tblspc, want %d (%v)", len(entries), len(want), err)
		}
		r := restoredServer(t, dir)
		if rows, err := restoretest.Balanced(ctx, r); err != nil {
			t.Error(err)
		} else {
			t.Logf("%s at %s: %d rows of history", dir, outcomes[i].LSN, rows)
		}
		got := fmt.Sprint(r.MustSQL(t, "postgres", `select (select count(*) from in_beside), (select count(*) from in_mapped), (select count(*) from fleeting),
			current_setting('data_checksums'), current_setting('archive_mode')`))
		if got != "[[3000 3000 0 on off]]" {
			t.Errorf("the restored server %d answers %s", i, got)
		}
		if _, err := r.SQL(ctx, "postgres", "insert into fleeting select generate_series(1, 10)", "insert into in_mapped values (9999, 'y')"); err != nil {
			t.Error(err)
		}
	}
	// The primary's own files are as they were.
	if got := fmt.Sprint(s.MustSQL(t, "postgres", "select count(*) from in_mapped", "select count(*) from fleeting")); got != "[[3000] [1000]]" {
		t.Errorf("the primary has %s rows", got)
	}

	refused(t, n, 1, []string{dirs[0], "is not empty"}, "restore", dirs[0])
	refused(t, n, 1, []string{"is not empty"}, "restore", filepath.Join(t.TempDir(), "three"), "--tablespace-mapping", locations[0]+"="+mapped)
	refused(t, n, 1, []string{"the source's"}, "restore", filepath.Join(t.TempDir(), "four"), "--tablespace-mapping", locations[0]+"="+locations[0])
	refused(t, n, 2, []string{"OLD=NEW"}, "restore", filepath.Join(t.TempDir(), "five"), "--tablespace-mapping", "here")
}

// fetch returns where PostgreSQL's programs are.
func fetch(t *testing.T) string {
	t.Helper()
	bin, err := pgtest.Fetch(t.Context(), pgtest.DefaultMajor)
	if err != nil {
		t.Fatal(err)
	}
	return bin
}

// restoreCommand is a restore that is not waited for yet.
type restoreCommand struct {
	*exec.Cmd
	dir            string
	stdout, stderr bytes.Buffer
}

// beginRestore starts a restore and returns as soon as it has begun to write files.
func beginRestore(t *testing.T, n *nodetest.Node, dir string) *restoreCommand {
	t.Helper()
	c := &restoreCommand{Cmd: exec.Command(everpage, "--server", n.Address(), "restore", dir, "--jobs", "1"), dir: dir}
	c.Stdout, c.Stderr = &c.stdout, &c.stderr
	if err := c.Start(); err != nil {
		t.Fatal(err)
	}
	eventually(t, "files in "+dir, func() (bool, string) {
		files, err := filepath.Glob(filepath.Join(dir, "base", "*", "*"))
		return len(files) > 0, fmt.Sprint(err)
	})
	return c
}

// An interrupted restore leaves what no server starts on, and says so. One whose node is killed and comes back goes on.
func TestRestoreInterrupted(t *testing.T) {
	t.Parallel()
	s := newPrimary(t)
	n := newNode(t)
	s.MustSQL(t, "postgres", "create database bench")
	if _, err := s.Pgbench(t.Context(), "-i", "-q", "-s", "2", "bench"); err != nil {
		t.Fatal(err)
	}
	if _, err := s.Pgbench(t.Context(), "-n", "-t", "100", "bench"); err != nil {
		t.Fatal(err)
	}
	attach(t, n, s)

	c := beginRestore(t, n, filepath.Join(t.TempDir(), "interrupted"))
	if err := c.Process.Signal(os.Interrupt); err != nil {
		t.Fatal(err)
	}
	c.Wait()
	if code := c.ProcessState.ExitCode(); code != 1 {
		t.Errorf("exit code %d after an interrupt: %s%s", code, c.stdout.String(), c.stderr.String())
	}
	for _, text := range []string{"interrupted", c.dir, "no server starts on it", "remove it"} {
		if !strings.Contains(c.stderr.String(), text) {
			t.Errorf("the message lacks %q: %s", text, c.stderr.String())
		}
	}
	if _, err := os.Stat(filepath.Join(c.dir, "global", "pg_control")); !os.IsNotExist(err) {
		t.Errorf("the interrupted directory has a pg_control: %v", err)
	}
	if r, err := pgtest.Open(t.Context(), c.dir, pgtest.Config{Dir: c.dir + ".server"}); err == nil {
		t.Errorf("a server started on an interrupted restore: %v", r.Close())
	}

	c = beginRestore(t, n, filepath.Join(t.TempDir(), "killed"))
	n.Kill9()
	if err := n.StartAgain(t.Context()); err != nil {
		t.Fatal(err)
	}
	if err := c.Wait(); err != nil {
		t.Fatalf("restore while the node restarts: %v: %s", err, c.stderr.String())
	}
	r := restoredServer(t, c.dir)
	if rows, err := restoretest.Balanced(t.Context(), r); err != nil || rows != 100 {
		t.Errorf("%d rows of history, %v", rows, err)
	}

	if os.Geteuid() != 0 {
		return
	}
	// What root restores belongs to whom the place belongs to; where that is root, a note tells what to do.
	place := filepath.Join(t.TempDir(), "place")
	if err := s.MakeDir(place); err != nil {
		t.Fatal(err)
	}
	info, err := os.Stat(place)
	if err != nil {
		t.Fatal(err)
	}
	dir := filepath.Join(place, "a", "b")
	n.Must(t, "restore", dir, "--quiet")
	err = filepath.Walk(place, func(path string, f os.FileInfo, err error) error {
		if err == nil && f.Sys().(*syscall.Stat_t).Uid != info.Sys().(*syscall.Stat_t).Uid {
			t.Errorf("%s belongs to user %d", path, f.Sys().(*syscall.Stat_t).Uid)
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	if out := n.Must(t, "restore", filepath.Join(t.TempDir(), "roots"), "--quiet"); !strings.Contains(out, "chown -R postgres:") {
		t.Errorf("root is not told about the owner: %s", out)
	}
}

// timeText is a time as the commands read it.
func timeText(at time.Time) string { return at.UTC().Format("2006-01-02 15:04:05.999999-07") }
