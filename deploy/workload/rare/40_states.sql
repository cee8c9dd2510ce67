-- One of many rounds between which the server stops: all that changes no page of a relation, a few of each. A prepared transaction stays, of which the
-- next round takes the end. Variables: round, before the round before it, new whether the major is 15 or later.

create table if not exists st(a int primary key, t text);
insert into st select g, '' from generate_series(1, 2100) g on conflict do nothing;
create sequence if not exists st_s;

-- as many multixacts as fill a page of their log, each with a subtransaction of its own
begin;
select count(*) from (select 1 from st for key share) q;
do $$ begin
	for i in 1..2100 loop
		begin
			update st set t = 'm' where a = i;
			perform 1 / (i % 50);
		exception when division_by_zero then null;
		end;
	end loop;
end $$;
commit;
begin; insert into st values (5000, 'aborted'); savepoint s; insert into st values (5001, 'aborted'); create table st_aborted(a int); rollback;
select count(nextval('st_s')) from generate_series(1, 40);
select count(pg_nextoid('pg_class', 'oid', 'pg_class_oid_index')) from generate_series(1, 9000);

-- ends cut off
insert into st select g, repeat('z', 900) from generate_series(10000, 10300) g;
delete from st where a >= 10000;
vacuum st;
create table st_:round as select g from generate_series(1, 500) g;
truncate st_:round;
drop table if exists st_:before;
reindex index pg_class_oid_index;
reindex index pg_database_oid_index;

-- transactions that were replicated
select pg_replication_origin_create('st_' || :round);
select pg_replication_origin_session_setup('st_' || :round);
begin;
select pg_replication_origin_xact_setup(('0/' || :round || '00')::pg_lsn, now());
update st set t = 'replicated' where a = 1;
commit;
select pg_replication_origin_session_reset();
select pg_replication_origin_drop(roname) from pg_replication_origin where roname = 'st_' || :before;

drop database if exists st_:before;
\if :new
select format('create database st_%s strategy %s', :round, case :round % 2 when 0 then 'file_copy' else 'wal_log' end) \gexec
\else
create database st_:round;
\endif
set allow_in_place_tablespaces = on;
create tablespace st_t:round location '';
create table st_placed_:round tablespace st_t:round as select g from generate_series(1, 100) g;
drop table if exists st_placed_:before;
drop tablespace if exists st_t:before;
select pg_switch_wal();
