-- Relation files that come, go, shrink, move and are rewritten.
-- Variables: n rows, round, ts1 and ts2 names of two tablespaces that exist.

-- rewrites
cluster hp using hp_pkey;
vacuum full hp;
alter table hp alter a type bigint;
alter table hp add column d int default 5;
create materialized view mv as select * from hp;
refresh materialized view mv;
create unique index on mv(id);
refresh materialized view concurrently mv;

-- tablespaces: there, across and back, with an index on the way; a table and its index stay
create table tt(a int primary key, t text) tablespace :ts1;
insert into tt select g, repeat('t', 3000) from generate_series(1, 400) g;
create index tt_t on tt(a) tablespace :ts2;
alter table tt set tablespace :ts2;
alter index tt_pkey set tablespace :ts1;
alter table tt set tablespace pg_default;
alter index tt_pkey set tablespace pg_default;
alter index tt_t set tablespace pg_default;
create table ts_stays(a int primary key using index tablespace :ts1, t text) tablespace :ts1;
insert into ts_stays select g, md5(g::text) from generate_series(1, 1000) g;
delete from ts_stays where a > 700;
vacuum ts_stays;

-- unlogged and temporary
create unlogged table ul(a serial, t text);
insert into ul(t) select md5(g::text) from generate_series(1, 1500) g;
create unlogged table ul_stays(a int primary key, t text);
insert into ul_stays select g, 'gone after a crash' from generate_series(1, 100) g;
alter table ul set logged;
alter table tt set unlogged;
alter table tt set logged;
create temp table tmp1 as select * from hp;

-- truncation: of the tail by vacuum, of everything, undone
create table tr(a serial primary key, t text);
insert into tr(t) select repeat('x', 500) from generate_series(1, 2000);
delete from tr where a > 100;
vacuum tr;
insert into tr(t) select repeat('y', 500) from generate_series(1, 300);
truncate tr restart identity;
insert into tr(t) values ('a');
truncate tr cascade;
begin; truncate tr; insert into tr(t) select 'z' from generate_series(1, 100); rollback;

-- sequences
create sequence s1 cache 10;
select count(nextval('s1')) from generate_series(1, 1000);
select setval('s1', 5000000);
alter sequence s1 increment by 7;
alter sequence s1 as bigint maxvalue 99999999 cycle;
create sequence s_stays;
select count(nextval('s_stays')) from generate_series(1, 100);
create unlogged table us(a serial);
select nextval('us_a_seq');
create temp sequence s2;
select nextval('s2');
drop sequence s1;

-- mapped catalogs get new files, updates in place
vacuum full pg_class;
vacuum full pg_database;
reindex table pg_class;
analyze;

-- dropped by a commit, dropped by a rollback
create table dropme as select * from hp;
drop table dropme;
begin; create table abrt as select * from hp; rollback;

select lo_create(900000 + :round);
select lo_put(900000 + :round, 0, decode(repeat('ab', 20000), 'hex'));
select lo_unlink(900000 + :round);
select lo_from_bytea(800000 + :round, decode(repeat('cd', 5000), 'hex'));
comment on table hp is 'x';
notify ch, 'm';
