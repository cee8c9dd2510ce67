-- What only wal_level = logical makes a server write, some of it only while a slot holds the catalogs back.

select 'ok' from pg_create_logical_replication_slot('rare', 'pgoutput');
create table rl(a int primary key, t text);
insert into rl select g, 't' from generate_series(1, 100) g;
select format('alter table rl add column c%s int default %s', g, g), 'truncate rl', 'insert into rl(a) select generate_series(1, 20)'
from generate_series(1, 35) g \gexec
vacuum full pg_attribute;
vacuum full pg_class;
select format('alter table rl alter c%s set default 0', g), format('comment on column rl.c%s is %L', g, 'rewritten') from generate_series(1, 10) g \gexec
vacuum full pg_attrdef;
vacuum full pg_attribute;
vacuum full pg_class;
cluster pg_type using pg_type_oid_index;
begin; savepoint a; create table rl2(a int); savepoint b; alter table rl2 add column b int; insert into rl2 values (1, 2); commit;
select pg_drop_replication_slot('rare');
