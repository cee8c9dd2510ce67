-- GIN: pending lists, entry trees, posting lists and trees, page deletion, bulk build. Variables: n rows.

create extension if not exists pg_trgm;
create extension if not exists btree_gin;
create table g(id serial, a int[], t text, j jsonb);
create index g_a on g using gin(a) with (fastupdate = on, gin_pending_list_limit = 64);
create index g_a2 on g using gin(a) with (fastupdate = off);
create index g_t on g using gin(t gin_trgm_ops);
create index g_j on g using gin(j jsonb_path_ops);
create index g_bt on g using gin(id);
insert into g(a, t, j) select array[i % 10, i % 100, i], left(md5(i::text), 8), jsonb_build_object('k', i % 5, 'v', i) from generate_series(1, :n) i;
select gin_clean_pending_list('g_a');
checkpoint;

-- few keys and many rows: posting trees made, split on both levels, vacuumed, pages deleted
create table gp(a int[]);
create index gp_a on gp using gin(a) with (fastupdate = off);
insert into gp select array[1, 2, i % 3] from generate_series(1, :n * 2) i;
insert into gp select array[i % 5] from generate_series(1, :n) i;
delete from gp where ctid < '(20,0)';
vacuum gp;
delete from gp where ctid < '(60,0)';
vacuum gp;
vacuum gp;
insert into gp select array[1, 2, 3] from generate_series(1, :n) i;
delete from gp;
vacuum gp;
insert into gp select array[9, 1, 2] from generate_series(1, :n) i;

-- a posting list that grows into a tree; a tree of more than one leaf whose first leaves empty. Both built at once at first, to
-- stay small in WAL
create table gpl(a int[]);
insert into gpl select array[1] from generate_series(1, 1500);
create index on gpl using gin(a) with (fastupdate = off);
insert into gpl select array[1] from generate_series(1, 1500);
create table gpt(a int[]) with (autovacuum_enabled = off);
insert into gpt select array[1] from generate_series(1, 30000);
create index on gpt using gin(a);
insert into gpt select array[1] from generate_series(1, 500);
delete from gpt where ctid < '(150,0)';
vacuum gpt;
delete from gpt where ctid < '(200,0)';
vacuum gpt;

-- entry pages vacuumed, pending pages deleted
update g set a = a || 1000, t = t || 'x' where id % 3 = 0;
vacuum g;
delete from g where id % 2 = 0;
vacuum g;
-- one row with more keys than a pending page takes
insert into g(a, t, j) select array_agg(x), string_agg(left(md5(x::text), 8), ' '), '{}' from generate_series(1, 200) x;
insert into g(a, t) select array(select generate_series(i * 3, i * 3 + 900)), repeat('ab', i) from generate_series(1, 2) i;
vacuum g;
create index g_a3 on g using gin(a);
