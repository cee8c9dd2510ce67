package datadir_test

import (
	"errors"
	"fmt"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"everpage/deploy/pgtest"
	"everpage/pageapi/datadir"
	"everpage/wal/pg"
)

// TestMissingIndex leaves a damaged index out, and nothing else.
func TestMissingIndex(t *testing.T) {
	for _, major := range []pg.Major{14, 15, 18} {
		t.Run(fmt.Sprint(major), func(t *testing.T) { testMissingIndex(t, major) })
	}
}

func testMissingIndex(t *testing.T, major pg.Major) {
	ctx := t.Context()
	source := pgtest.New(t, pgtest.Config{Major: int(major), Dir: t.TempDir(), Settings: map[string]string{"autovacuum": "off"}})
	source.MustSQL(t, "postgres", "create schema s", "create table s.t (a int primary key, b text)", "insert into s.t select g, 'x' || g from generate_series(1, 5000) g",
		"create index lost on s.t using hash(b)", "reindex index s.lost", "create index kept on s.t(b)", "create table gone as select 1 a", "drop table gone",
		"create table big (a text)", "insert into big select string_agg(md5(i::text), '') from generate_series(1, 1000) i")
	rel := func(name string) pg.RelFork {
		r, err := pg.ParseRel(source.MustSQL(t, "postgres", "select pg_relation_filepath('"+name+"')")[0][0])
		if err != nil {
			t.Fatal(err)
		}
		return pg.RelFork{RelFileLocator: r}
	}
	toast := source.MustSQL(t, "postgres", "select i.indexrelid::regclass from pg_class c join pg_index i on i.indrelid = c.reltoastrelid where c.relname = 'big'")[0][0]
	lost, table, class, toastIndex := rel("s.lost"), rel("s.t"), rel("pg_class_oid_index"), rel(toast)
	orphan := pg.RelFork{RelFileLocator: pg.RelFileLocator{Spc: lost.Spc, DB: lost.DB, Rel: 4000000000}}
	freeSpace := pg.RelFork{RelFileLocator: table.RelFileLocator, Fork: pg.FSMFork}
	if err := source.Stop(ctx, pgtest.Fast); err != nil {
		t.Fatal(err)
	}
	src, err := openCold(source.DataDir())
	if err != nil {
		t.Fatal(err)
	}
	o := datadir.Options{At: src.end, Timeline: 2, Reason: "test", Now: time.Now()}
	cause := errors.New("resource manager Hash is not redone")
	plan := func(allow bool, damaged ...pg.RelFork) (*datadir.Tree, string) {
		t.Helper()
		src.damage = nil
		for _, f := range damaged {
			src.damage = append(src.damage, datadir.Damage{RelFork: f, Err: cause})
		}
		o := o
		o.AllowMissing = allow
		tree, err := datadir.Plan(ctx, src, o)
		if err == nil {
			return tree, ""
		}
		var damage *datadir.DamagedError
		if !errors.As(err, &damage) || len(damage.Relations) != len(damaged) {
			t.Errorf("damage %v: %v", damaged, err)
		}
		return nil, err.Error()
	}
	for _, c := range []struct {
		allow   bool
		damaged pg.RelFork
		says    string
	}{
		{false, lost, "index s.lost): resource manager Hash is not redone; choose another LSN"},
		{true, table, "table s.t): resource manager Hash is not redone; it is no index"},
		{true, pg.RelFork{RelFileLocator: table.RelFileLocator, Fork: pg.VMFork}, "table s.t"},
		{true, class, "index pg_catalog.pg_class_oid_index): resource manager Hash is not redone; the server needs this index"},
		{true, toastIndex, "the server needs this index"},
		{true, relOf("global/1262"), "global/1262: resource manager Hash is not redone; whether it is an index cannot be told"},
		{true, pg.SLRUPage(pg.Xact, 0).RelFork, "pg_xact"},
	} {
		if _, err := plan(c.allow, c.damaged); !strings.Contains(err, c.says) {
			t.Errorf("%v: %q does not say %q", c.damaged, err, c.says)
		}
	}
	if tree, err := plan(false, freeSpace); err != "" || len(tree.Missing) != 0 {
		t.Errorf("a free space map that nobody needs stops it: %s", err)
	}
	tree, failure := plan(true, lost, orphan, freeSpace)
	if failure != "" {
		t.Fatal(failure)
	}
	if len(tree.Missing) != 2 || tree.Missing[0].Name != "s.lost" || tree.Missing[0].Kind != "index" || tree.Missing[1].Name != "" {
		t.Errorf("missing: %+v", tree.Missing)
	}
	dir := filepath.Join(t.TempDir(), "restored")
	if err := datadir.Write(ctx, tree, dir, datadir.WriteOptions{}); err != nil {
		t.Fatal(err)
	}
	s, err := pgtest.Open(ctx, dir, pgtest.Config{Major: int(major), Dir: t.TempDir()})
	if err != nil {
		t.Fatal(err)
	}
	pgtest.CloseWith(t, s)
	flags := func(want string) {
		t.Helper()
		rows := s.MustSQL(t, "postgres", "select indexrelid::regclass, indisvalid, indisready, indislive from pg_index where not (indisvalid and indisready and indislive)")
		if fmt.Sprint(rows) != want {
			t.Errorf("invalid indexes: %v, want %s", rows, want)
		}
	}
	flags("[[s.lost f f t]]")
	s.MustSQL(t, "postgres", "insert into s.t values (6000, 'new')", "update s.t set b = 'y' where a = 17", "vacuum s.t", "set enable_seqscan = off")
	if n := s.MustSQL(t, "postgres", "set enable_seqscan = off; select count(*) from s.t where b in ('new', 'y', 'x18', 'x17')"); n[0][0] != "3" {
		t.Errorf("%v rows found, want 3", n)
	}
	s.MustSQL(t, "postgres", "reindex index s.lost")
	flags("[]")
	if out, err := s.Amcheck(ctx); err != nil || out != "" {
		t.Errorf("pg_amcheck: %v: %s", err, out)
	}
}

func relOf(path string) pg.RelFork {
	r, err := pg.ParseRel(path)
	if err != nil {
		panic(err)
	}
	return pg.RelFork{RelFileLocator: r}
}
