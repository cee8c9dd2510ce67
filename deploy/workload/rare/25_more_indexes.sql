-- What an index does a few times in its life, in many indexes. Filling them needs no check images: what comes then does.

-- hash: splits
select format('create table rx_%s(a int)', g), format('create index on rx_%s using hash(a) with (fillfactor = 10)', g),
	format('insert into rx_%s select (random() * 1000000)::int from generate_series(1, 150)', g)
from generate_series(1, 4) g \gexec

-- hash: squeezes and moves
select format('create table ry_%s(a int, b int) with (autovacuum_enabled = off)', g), format('create index on ry_%s using hash(a)', g),
	'set wal_consistency_checking = ''''', format('insert into ry_%s select 1, g from generate_series(1, 1300) g', g),
	format('insert into ry_%s select 2, g from generate_series(1, 1300) g', g), 'reset wal_consistency_checking',
	format('delete from ry_%s where b %% 3 <> 0', g), format('vacuum ry_%s', g),
	format('insert into ry_%s select 1, g from generate_series(1, 600) g', g), format('delete from ry_%s where b %% 2 = 0', g), format('vacuum ry_%s', g)
from generate_series(1, 4) g \gexec

-- GIN: posting lists that grow into trees, whose leaves are then vacuumed
select format('create table rz_%s(a int[]) with (autovacuum_enabled = off)', g), format('insert into rz_%s select array[1] from generate_series(1, 2000)', g),
	format('create index on rz_%s using gin(a) with (gin_pending_list_limit = 1024)', g), 'set wal_consistency_checking = ''''',
	format('insert into rz_%s select array[1] from generate_series(1, 2500)', g), 'reset wal_consistency_checking',
	format('vacuum rz_%s', g), format('delete from rz_%s where ctid < ''(5,0)'' and (ctid::text::point)[1]::int %% 2 = 0', g), format('vacuum rz_%s', g)
from generate_series(1, 13) g \gexec

-- GiST: pages deleted and used again
select format('create table ru_%s(p point) with (autovacuum_enabled = off)', g),
	format('insert into ru_%s select point(g, g) from generate_series(1, 2000) g', g), format('create index on ru_%s using gist(p)', g),
	format('delete from ru_%s where ctid > ''(0,9)''', g), format('vacuum ru_%s', g), 'select txid_current()', format('vacuum ru_%s', g),
	'select txid_current()', format('vacuum ru_%s', g), format('insert into ru_%s select point(g, 1) from generate_series(1, 400) g', g)
from generate_series(1, 5) g \gexec

-- SP-GiST: a root that is a leaf emptied, prefixes that split
select format('create table rs_%s(t text) with (autovacuum_enabled = off)', g), format('create index on rs_%s using spgist(t)', g),
	format('insert into rs_%s select ''a'' from generate_series(1, 20)', g), format('delete from rs_%s', g), format('vacuum rs_%s', g),
	'set wal_consistency_checking = ''''',
	format('insert into rs_%s select repeat(''common prefix '', 5) || lpad(g::text, 6, ''0'') from generate_series(1, 600) g', g),
	'reset wal_consistency_checking', format('insert into rs_%s values (''common pre''), (''common prefix com''), (''common''), (''c'')', g)
from generate_series(1, 8) g \gexec

-- BRIN: ranges that lose their summaries and get them again
create table rw(a int, t text) with (fillfactor = 10, autovacuum_enabled = off);
create index rw_a on rw using brin(a) with (pages_per_range = 1);
insert into rw select g, repeat('x', 300) from generate_series(1, 60) g;
vacuum rw;
select count(brin_desummarize_range('rw_a', g)) from generate_series(0, 14) g;
select brin_summarize_new_values('rw_a');
