-- B-trees: every way a page is filled, split, deduplicated, cleaned, deleted and used again.
-- Variables: n rows.

create table bt(id int, k text, d int, v text) with (fillfactor = 80);
create unique index bt_id on bt(id);
create index bt_d on bt(d);
create index bt_k on bt(k) with (fillfactor = 50);
create index bt_nd on bt(d) with (deduplicate_items = off);
create index bt_inc on bt(d) include (k);

insert into bt select g, md5(g::text) || repeat('x', g % 50), g % 17, 'v' from generate_series(1, :n) g;
insert into bt select g, md5((g % 7)::text), g % 3, repeat('y', 200) from generate_series(:n + 1, :n * 2) g order by random();
-- out of order: splits of posting lists and in the middle of pages
insert into bt select g, md5(g::text), (random() * 5)::int, '' from generate_series(:n * 2 + 1, :n * 3) g order by random();
checkpoint;

-- versions that HOT cannot take: bottom-up deletion, and deletion of items that a scan has marked dead
do $$ begin
	for i in 1..15 loop
		update bt set d = d + 1 where id % 50 = 0;
		perform count(*) from bt where id between 1 and 200;
	end loop;
end $$;
begin; delete from bt where id between 100 and 15000; commit;
set enable_seqscan = off;
select count(*) from bt where d = 1;
select count(*) from bt where id between 100 and 15000;
reset enable_seqscan;
insert into bt select g, md5(g::text), 1, '' from generate_series(100, 900) g;
vacuum (index_cleanup on) bt;

-- deletion of pages in two steps, and their second life once nobody can still be on them: once all transactions have ended that began before, in other
-- databases, too (GlobalVisTestIsRemovableFullXid)
delete from bt where id > 500;
vacuum (index_cleanup on) bt;
vacuum (index_cleanup on) bt;
select set_config('corpus.xid', txid_current()::text, false);
do $$ begin
	for i in 1..5000 loop
		exit when pg_snapshot_xmin(pg_current_snapshot())::text::bigint > current_setting('corpus.xid')::bigint;
		perform pg_sleep(0.001);
	end loop;
end $$;
vacuum bt;
insert into bt select g, md5(g::text), g % 17, 'v' from generate_series(1000 + :n * 4, 1000 + :n * 5) g;

-- a tree of three levels that loses nearly all its leaves: the fast root moves down; nearly empty pages, for which the tree
-- must be built at once, keep the images small
create table bt2(a int) with (fillfactor = 10);
insert into bt2 select generate_series(1, 14000);
alter table bt2 add primary key (a) with (fillfactor = 10);
delete from bt2 where a < 13900;
vacuum bt2;
select set_config('corpus.xid', txid_current()::text, false);
do $$ begin
	for i in 1..5000 loop
		exit when pg_snapshot_xmin(pg_current_snapshot())::text::bigint > current_setting('corpus.xid')::bigint;
		perform pg_sleep(0.001);
	end loop;
end $$;
vacuum bt2;
vacuum bt2;
insert into bt2 select generate_series(1, 1000);

-- wide keys: a deep tree, suffix truncation, new roots
create table bt3(a text collate "C");
create index on bt3(a);
insert into bt3 select repeat(chr(97 + (g % 26)), 1500) || g from generate_series(1, 700) g order by random();
delete from bt3 where a < 't';
vacuum bt3;
select set_config('corpus.xid', txid_current()::text, false);
do $$ begin
	for i in 1..5000 loop
		exit when pg_snapshot_xmin(pg_current_snapshot())::text::bigint > current_setting('corpus.xid')::bigint;
		perform pg_sleep(0.001);
	end loop;
end $$;
vacuum bt3;
vacuum bt3;

create index concurrently bt_conc on bt(v, d);
reindex index concurrently bt_conc;
drop index concurrently bt_conc;
