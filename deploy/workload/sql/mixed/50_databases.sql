-- Databases made both ways, moved between tablespaces, renamed, dropped; full-page writes off for a while.
-- Variables: round, ts1 and ts2 names of two tablespaces, strategies whether CREATE DATABASE knows STRATEGY (15 and later).

\if :strategies
create database d_wal strategy wal_log;
create database d_fc strategy file_copy;
create database keep_wal_:round strategy wal_log;
create database keep_fc_:round strategy file_copy;
alter database d_wal rename to d_wal2;
drop database d_wal2;
drop database d_fc;
\endif
create database d_plain template template0;
create database d_ts tablespace :ts1;
alter database d_plain set tablespace :ts2;
alter database d_plain set tablespace pg_default;
drop database d_plain;
drop database d_ts;
create database keep_plain_:round;
create database keep_ts_:round tablespace :ts1;
create database keep_moved_:round;
alter database keep_moved_:round set tablespace :ts1;

create role r1;
alter role r1 superuser;
drop role r1;

-- pg_reload_conf() only signals: the pauses let the checkpointer see the change; nothing depends on its having done so
alter system set full_page_writes = off;
select pg_reload_conf();
select pg_sleep(0.3);
checkpoint;
create table nofpw as select g a, repeat('f', 100) b from generate_series(1, :n) g;
update nofpw set a = a + 1;
alter system reset full_page_writes;
select pg_reload_conf();
select pg_sleep(0.3);
checkpoint;
update nofpw set a = a + 1;

-- the second tablespace is empty by now
drop tablespace :ts2;
