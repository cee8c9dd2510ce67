package restoretest

import (
	"strings"
	"testing"

	"everpage/deploy/pgtest"
)

// `pgbench -i` commits each of its tables by itself, so that a restore can have some of them.
func TestBalancedBesideInitialization(t *testing.T) {
	ctx := t.Context()
	s := pgtest.New(t, pgtest.Config{})
	balanced := func(want int, complaint string) {
		t.Helper()
		n, err := Balanced(ctx, s)
		if complaint == "" && (err != nil || n != want) {
			t.Errorf("%d rows, %v; want %d", n, err, want)
		}
		if complaint != "" && (err == nil || !strings.Contains(err.Error(), complaint)) {
			t.Errorf("%v; want an error with %q", err, complaint)
		}
	}
	balanced(0, "")
	s.MustSQL(t, "postgres", "create database bench")
	balanced(0, "")
	s.MustSQL(t, "bench", "create table pgbench_history (delta int)")
	balanced(0, "")
	s.MustSQL(t, "bench", "insert into pgbench_history values (7)")
	balanced(0, `pgbench_history has "1" rows`)
	s.MustSQL(t, "bench", "create table pgbench_tellers as select 7 as tbalance", "create table pgbench_accounts as select 7 as abalance",
		"create table pgbench_branches as select 7 as bbalance")
	balanced(1, "")
	s.MustSQL(t, "bench", "update pgbench_tellers set tbalance = 8")
	balanced(0, "balances")
}
