-- GiST: splits, buffering and sorted builds, page deletion and reuse, cleaning of full pages. Variables: n rows.

create extension if not exists btree_gist;
create table gi(id int, p point, b box, r int4range, c text, exclude using gist (id with =, r with &&));
create index gi_p on gi using gist(p);
create index gi_b on gi using gist(b) with (buffering = on, fillfactor = 60);
create index gi_r on gi using gist(r);
create index gi_c on gi using gist(id, c);
insert into gi
	select g, point(random() * 1000, random() * 1000), box(point(g % 100, g % 77), point(g % 100 + 1, g % 77 + 2)), int4range(g, g + 3), repeat('k', g % 300)
	from generate_series(1, :n) g;
update gi set p = point(random() * 10, random() * 10) where id % 5 = 0;
delete from gi where p <@ box(point(0, 0), point(600, 600));
vacuum gi;
set enable_seqscan = off;
select count(*) from gi where p <@ box(point(0, 0), point(1000, 1000));
reset enable_seqscan;

-- pages emptied, deleted and used again
delete from gi where id % 10 <> 0;
vacuum gi;
vacuum gi;
select txid_current();
vacuum gi;
delete from gi where id < :n - 100;
vacuum gi;
select txid_current();
vacuum gi;
insert into gi select g, point(g % 1000, g % 37), null, int4range(g, g + 1), 'x' from generate_series(:n + 1, :n * 2) g;

-- a full page with items that a scan has marked dead is cleaned by an insert
create table gk(p point) with (autovacuum_enabled = off);
create index on gk using gist(p);
insert into gk select point(1, 1) from generate_series(1, 1500);
delete from gk;
select txid_current();
set enable_seqscan = off; set enable_bitmapscan = off;
select count(*) from gk where p <@ box(point(0, 0), point(2, 2));
select count(*) from gk where p <@ box(point(0, 0), point(2, 2));
insert into gk select point(1, 1) from generate_series(1, 1500);
reset enable_seqscan; reset enable_bitmapscan;

set max_parallel_maintenance_workers = 0;
create index gi_buf on gi using gist(p) with (buffering = on);
create index gi_sorted on gi using gist(p);
create unlogged table gul(p point);
create index on gul using gist(p);
insert into gul select point(g, g) from generate_series(1, 2000) g;
begin;
create table ga(p point);
create index on ga using gist(p);
insert into ga select point(g, g) from generate_series(1, 1500) g;
commit;
