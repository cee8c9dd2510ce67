-- What only large relations have: heap and hash pages in the second file of 1 GB, truncated away and written again, and GIN posting trees of three levels.
-- After-images are logged where redo changes pages; the filling, which writes whole pages, is logged without.
set wal_consistency_checking = '';

create table large_heap(a int, t text) with (autovacuum_enabled = off);
alter table large_heap alter t set storage plain;
insert into large_heap select g, repeat('x', 8100) from generate_series(1, 131020) g;
vacuum (freeze) large_heap;
set wal_consistency_checking = 'all';
select format('insert into large_heap select g, repeat(''y'', 8100) from generate_series(1, 1300) g'),
	'insert into large_heap select g, ''short'' from generate_series(1, 700) g',
	'update large_heap set a = a + 1 where ctid >= ''(131072,0)'' and a % 2 = 0',
	'select count(*) from (select from large_heap where ctid >= ''(131072,0)'' and a % 5 = 0 for update) x',
	'delete from large_heap where ctid >= ''(131072,0)'' and a % 3 = 0',
	'vacuum (freeze) large_heap',
	'update large_heap set a = -a where ctid >= ''(131072,0)'' and a % 7 = 0',
	'delete from large_heap where ctid >= ''(131000,0)''',
	'vacuum large_heap' -- cuts the file off before the boundary
from generate_series(1, 3) g \gexec
insert into large_heap select g, repeat('z', 8100) from generate_series(1, 100) g;

-- A hash index has as many buckets from the beginning as the planner's estimate of the rows asks for.
set wal_consistency_checking = '';
create table large_hash(a int) with (autovacuum_enabled = off);
insert into large_hash values (0);
update pg_class set relpages = 1, reltuples = 5400000 where oid = 'large_hash'::regclass;
create index large_hash_a on large_hash using hash(a) with (fillfactor = 10);
set wal_consistency_checking = 'all';
insert into large_hash select g from generate_series(1, 12000) g;
select format('insert into large_hash select a from large_hash, generate_series(1, 400) where a = %s', g) from generate_series(1, 40) g \gexec
delete from large_hash where a % 3 = 0;
vacuum large_hash;

set wal_consistency_checking = '';
create extension if not exists btree_gin;
create extension if not exists pageinspect;
create table large_gin(a int) with (autovacuum_enabled = off);
copy (select 1 from generate_series(1, 6200000)) to :'tmpcopy';
copy large_gin from :'tmpcopy';
create index large_gin_1 on large_gin using gin(a) with (fastupdate = off);
create index large_gin_2 on large_gin using gin(a) with (fastupdate = off);
create index large_gin_3 on large_gin using gin(a) with (fastupdate = off);
-- Pages of posting trees that are no leaves: more than one where a root was split.
create function inner_pages(index text) returns bigint language sql as $$
	select count(*) from generate_series(1, pg_relation_size(index) / 8192 - 1) b, gin_page_opaque_info(get_raw_page(index, b::int)) p where p.flags = '{data}'
$$;
do $$
begin
	for i in 1 .. 200 loop
		exit when inner_pages('large_gin_1') > 1 and inner_pages('large_gin_3') > 1;
		insert into large_gin select 1 from generate_series(1, 10000);
	end loop;
end
$$;
set wal_consistency_checking = 'gin';
insert into large_gin select 1 from generate_series(1, 9000); -- more than a leaf holds, so that each tree's inner pages get one more
do $$
begin
	assert inner_pages('large_gin_1') > 1 and inner_pages('large_gin_2') > 1 and inner_pages('large_gin_3') > 1, 'no root of a posting tree was split';
end
$$;
delete from large_gin where ctid < '(3000,0)'; -- some 80 leaves of each tree are empty then
vacuum large_gin;
insert into large_gin select 1 from generate_series(1, 500);
