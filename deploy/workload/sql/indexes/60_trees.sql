-- GIN and SP-GiST trees that grow above their first inner page, and what fills the holes of a vacuum. Variables: none; the shapes need
-- these numbers of rows.

-- a posting tree whose root, an inner page already, gets another child; built at once, then filled in batches from the pending list
create table gt(a int[]) with (autovacuum_enabled = off);
insert into gt select array[1] from generate_series(1, 30000);
create index gt_a on gt using gin(a) with (gin_pending_list_limit = 1024);
set wal_consistency_checking = '';
insert into gt select array[1] from generate_series(1, 6000);
set wal_consistency_checking = 'gin';
select gin_clean_pending_list('gt_a');
-- every other TID goes, and some in a row; others take their places
delete from gt where ctid < '(60,0)' and (ctid::text::point)[1]::int % 2 = 0;
delete from gt where ctid > '(80,0)' and ctid < '(84,0)';
vacuum gt;
insert into gt select array[1] from generate_series(1, 20);
select gin_clean_pending_list('gt_a');
insert into gt select array[1] from generate_series(1, 900);
select gin_clean_pending_list('gt_a');

-- an entry tree of three levels: an inner page splits
create table ge(t text);
create index ge_t on ge using gin(t) with (fastupdate = off);
insert into ge
	select (select string_agg(md5(g || ' ' || h), '') from generate_series(1, 75) h) from generate_series(1, 90) g;
set wal_consistency_checking = 'spgist';

-- inner tuples that grow until their page is full, and move to another
create table st(k int, l int, t text collate "C") with (autovacuum_enabled = off);
create index st_t on st using spgist(t);
insert into st select k, l, to_char(k, 'FM000') || chr(97 + l) || repeat('x', 600) from generate_series(1, 60) k, generate_series(0, 13) l;
insert into st select k, l, to_char(k, 'FM000') || chr(33 + l) || 'x' from generate_series(0, 45) l, generate_series(1, 60) k;
-- chains that vacuum leaves a dead head of, which a short tuple replaces on its page and a long one on another
delete from st where l % 3 = 0;
vacuum st;
insert into st select k, l, to_char(k, 'FM000') || chr(97 + l) || repeat('x', 1 + (k % 4) * 650) from generate_series(1, 60) k, generate_series(0, 12, 3) l;
delete from st where l % 3 = 1;
vacuum st;
insert into st select k, l, to_char(k, 'FM000') || chr(97 + l) || repeat('y', 1900 - (k % 4) * 600) from generate_series(1, 60) k, generate_series(1, 13, 3) l;
vacuum st;
reset wal_consistency_checking;
