package restoretest

import (
	"context"
	"fmt"
	"strings"

	"everpage/deploy/pgtest"
)

// lastDumped is the newest major that pgtest's pg_dumpall reads. Newer servers are compared by digests.
const lastDumped = pgtest.DefaultMajor

// definitions are what a server says of objects. It reads more for them than the rows of the catalogs that are compared anyway.
const definitions = `
	select 'index', indexrelid::regclass::text, pg_get_indexdef(indexrelid) from pg_index
	union all select 'view', oid::regclass::text, pg_get_viewdef(oid) from pg_class where relkind in ('v', 'm')
	union all select 'constraint', oid::text, pg_get_constraintdef(oid) from pg_constraint
	union all select 'trigger', oid::text, pg_get_triggerdef(oid) from pg_trigger
	union all select 'rule', oid::text, pg_get_ruledef(oid) from pg_rewrite
	union all select 'function', oid::regprocedure::text, pg_get_functiondef(oid) from pg_proc where prokind <> 'a'
	union all select 'statistics', oid::text, pg_get_statisticsobjdef(oid) from pg_statistic_ext
	union all select 'partition', oid::regclass::text, pg_get_partkeydef(oid) from pg_class where relkind = 'p'
	order by 1, 2, 3`

// digest is a line for each relation that holds rows (catalogs, TOAST tables and sequences too) of each database, with the number of its rows and a hash of all
// of them, each with its place and the transaction that wrote it; and what the server says of each object. Tables of sessions that are gone can't be read.
func digest(ctx context.Context, s *pgtest.Server) (text string, err error) {
	databases, err := s.Databases(ctx)
	if err != nil {
		return "", err
	}
	var b strings.Builder
	for _, db := range databases {
		names, err := s.SQL(ctx, db, `select quote_ident(nspname) || '.' || quote_ident(relname) from pg_class c join pg_namespace n on n.oid = relnamespace
			where relkind in ('r', 'm', 't', 'S') and relpersistence <> 't' order by 1`)
		if err != nil {
			return "", err
		}
		statements := []string{"set enable_indexscan = off; set enable_indexonlyscan = off; set enable_bitmapscan = off; set timezone = 'UTC'"}
		for _, name := range names {
			statements = append(statements, fmt.Sprintf(`select '%s', count(*), md5(string_agg(h, '' order by h))
				from (select md5(row(ctid, xmin, r.*)::text) as h from %s r) x`, strings.ReplaceAll(name[0], "'", "''"), name[0]))
		}
		rows, err := s.SQL(ctx, db, append(statements, definitions)...)
		if err != nil {
			return "", err
		}
		for _, row := range rows {
			fmt.Fprintf(&b, "%s: %s\n", db, strings.Join(row, " | "))
		}
	}
	roles, err := s.SQL(ctx, "postgres", "select pg_get_userbyid(oid), rolvaliduntil from pg_authid order by 1")
	if err != nil {
		return "", err
	}
	for _, row := range roles {
		fmt.Fprintf(&b, "role %s\n", strings.Join(row, " | "))
	}
	return b.String(), nil
}
