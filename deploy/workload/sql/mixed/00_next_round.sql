-- Makes room: ends what the last round left open and moves its relations to a schema of their own.
-- Variables: round, the one that begins.

commit prepared 'p_stays';
select pg_replication_origin_drop('o2');
alter schema public rename to round_before_:round;
create schema public;
