-- Index records that other workloads write few of. Extensions: btree_gist, bloom.

-- full pages with items that a scan has marked dead are cleaned by an insert
create table rg(p point) with (autovacuum_enabled = off);
create index on rg using gist(p);
create table rh(a int) with (autovacuum_enabled = off);
create index on rh using hash(a);
set enable_seqscan = off; set enable_bitmapscan = off;
select 'insert into rg select point(1, 1) from generate_series(1, 400)', 'insert into rh select 1 from generate_series(1, 450)',
	'delete from rg', 'delete from rh', 'select txid_current()',
	'select count(*) from rg where p <@ box(point(0, 0), point(2, 2))', 'select count(*) from rg where p <@ box(point(0, 0), point(2, 2))',
	'select count(*) from rh where a = 1', 'select count(*) from rh where a = 1'
from generate_series(1, 14) g \gexec
reset enable_seqscan; reset enable_bitmapscan;

-- indexes made over and over
create table ri(a int, t text);
insert into ri select g, md5(g::text) from generate_series(1, 200) g;
select format('create index ri_%s on ri using %s(%s)', g, m, c), format('insert into ri select g, md5((g * %s)::text) from generate_series(1, 40) g', g),
	format('drop index ri_%s', g)
from generate_series(1, 13) g, (values ('brin', 'a'), ('hash', 'a'), ('gin', 'a'), ('gist', 'a'), ('spgist', 't'), ('btree', 'a')) v(m, c) \gexec

-- a B-tree of one leaf below its root, which is the fast root: its split needs an insertion above the fast root
select format('create table rb_%s(a int) with (autovacuum_enabled = off)', g), format('insert into rb_%s select generate_series(1, 800)', g),
	format('alter table rb_%s add primary key (a) with (fillfactor = 10)', g), format('delete from rb_%s where a < 799', g), 'select txid_current()',
	format('vacuum (index_cleanup on) rb_%s', g), format('vacuum (index_cleanup on) rb_%s', g),
	format('insert into rb_%s select generate_series(1, 500)', g)
from generate_series(1, 13) g \gexec
