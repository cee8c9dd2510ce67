-- Many of what other workloads write few of: marks, messages, origins, prepared transactions, mapped files, databases, tablespaces.
-- Variables: round, new whether the major is 15 or later.

create table rr(a int primary key, t text);
insert into rr select g, '' from generate_series(1, 100) g;

select count(pg_create_restore_point('mark ' || g)) from generate_series(1, 15) g;
select count(pg_logical_emit_message(g % 2 = 0, 'rare', repeat('m', g))) from generate_series(1, 20) g;
select count(pg_nextoid('pg_class', 'oid', 'pg_class_oid_index')) from generate_series(1, 60000);
select pg_switch_wal();
insert into rr values (201, 'after a switch');
select pg_switch_wal();

select format('select pg_replication_origin_create(%L)', 'r' || g), format('select pg_replication_origin_advance(%L, %L)', 'r' || g, '0/' || g),
	format('select pg_replication_origin_drop(%L)', 'r' || g)
from generate_series(1, 15) g \gexec

select 'begin', format('update rr set t = t || %L where a %% 20 = %s', 'x', g), 'savepoint s', format('insert into rr values (%s, %L)', 1000 + g, 's'),
	format('create table rr_%s(a int)', g), format('prepare transaction %L', 'rare' || g),
	format('%s prepared %L', case g % 2 when 0 then 'commit' else 'rollback' end, 'rare' || g)
from generate_series(1, 30) g \gexec

-- each in a transaction that ends in one way or the other
select 'begin', format('create table ra_%s as select g from generate_series(1, 300) g', g), case g % 3 when 0 then 'commit' else 'rollback' end
from generate_series(1, 20) g \gexec
do $$ begin
	for i in 1..1500 loop
		begin
			update rr set t = 'y' where a = 1 + i % 50;
			perform 1 / (i % 9);
		exception when division_by_zero then null;
		end;
	end loop;
end $$;

-- mapped indexes get new files
select 'reindex index pg_class_oid_index' from generate_series(1, 13) g \gexec

-- the ends of relations cut off, and what comes again
select 'insert into rr select g, repeat(''z'', 500) from generate_series(2000, 2300) g', 'delete from rr where a >= 2000', 'vacuum rr'
from generate_series(1, 15) g \gexec

-- nobody may hold a template while it is copied
\if :new
select format('create database rare_f%s strategy file_copy', g), format('drop database rare_f%s', g) from generate_series(1, 8) g \gexec
select format('create database rare_w%s strategy wal_log', g), format('drop database rare_w%s', g) from generate_series(1, 6) g \gexec
\else
select format('create database rare_%s', g), format('drop database rare_%s', g) from generate_series(1, 10) g \gexec
\endif

set allow_in_place_tablespaces = on;
select format('create tablespace rare_t%s location %L', g, ''), format('create table in_place_%s tablespace rare_t%s as select 1 a', g, g),
	format('drop table in_place_%s', g), format('drop tablespace rare_t%s', g)
from generate_series(1, 13) g \gexec
create tablespace rare_stays location '';
create table in_place_stays tablespace rare_stays as select g from generate_series(1, 1000) g;

-- base backups that nobody takes
\if :new
select pg_backup_start('none', true);
select pg_backup_stop(false);
select pg_backup_start('none', true);
insert into rr values (202, 'in a backup');
select pg_backup_stop(false);
\else
select pg_start_backup('none', true, false);
select pg_stop_backup(false, false);
select pg_start_backup('none', true, false);
insert into rr values (202, 'in a backup');
select pg_stop_backup(false, false);
\endif
