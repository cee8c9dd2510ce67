-- Hash indexes: splits, overflow chains, squeezes, cleaning of full pages, bitmap pages. Variables: n rows.

create table h(a int, b text);
create index h_a on h using hash(a);
create index h_b on h using hash(b) with (fillfactor = 20);
insert into h select g, md5(g::text) from generate_series(1, :n * 2) g;
-- long overflow chains, then squeezed, contents moved, tuples deleted
insert into h select 42, 'dup' from generate_series(1, :n) g;
delete from h where a = 42 and ctid in (select ctid from h where a = 42 limit :n / 2);
vacuum h;
insert into h select g, 'dup' from generate_series(1, :n / 2) g;
delete from h where b = 'dup' and a % 2 = 0;
vacuum h;
delete from h where a = 42;
vacuum h;

-- a full page with items that a scan has marked dead is cleaned by an insert
create table h2(a int) with (autovacuum_enabled = off);
create index on h2 using hash(a);
insert into h2 select 1 from generate_series(1, 1000);
delete from h2;
select txid_current();
set enable_seqscan = off; set enable_bitmapscan = off;
select count(*) from h2 where a = 1;
select count(*) from h2 where a = 1;
insert into h2 select 1 from generate_series(1, 1000);
reset enable_seqscan; reset enable_bitmapscan;

create unlogged table hu(a int);
create index on hu using hash(a);
insert into hu select generate_series(1, 1000);

-- many buckets
create index h_c on h using hash(a) with (fillfactor = 10);
insert into h select (random() * 1000000)::int, 'z' from generate_series(1, :n) g;
vacuum h;

-- squeezes that change both pages, also onto a page that just became the target
create table h3(a int, b int);
create index on h3 using hash(a);
insert into h3 select 1, g from generate_series(1, 1300) g;
insert into h3 select 2, g from generate_series(1, 1300) g;
delete from h3 where b % 3 <> 0;
vacuum h3;
insert into h3 select 1, g from generate_series(1, 1300) g;
delete from h3 where b % 2 = 0;
vacuum h3;
delete from h3;
vacuum h3;
