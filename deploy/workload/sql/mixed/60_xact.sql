-- Transactions: two-phase commit across checkpoints, replication origins, messages, restore points, asynchronous commit.
-- One transaction stays prepared. Variables: round.

create table px(a int primary key, t text);
insert into px select g, '' from generate_series(1, 200) g;

begin;
insert into px values (1001, 'p');
create table ptab as select * from px;
savepoint s;
update px set t = 'q' where a < 5;
prepare transaction 'p1';
begin; update px set t = 'r' where a between 10 and 20; prepare transaction 'p2';
begin; delete from px where a = 30; prepare transaction 'p3';
begin; drop table st; truncate oc; prepare transaction 'p4';
checkpoint;
commit prepared 'p1';
rollback prepared 'p2';
rollback prepared 'p3';
commit prepared 'p4';

select pg_logical_emit_message(true, 'prefix', 'in a transaction');
select pg_logical_emit_message(false, 'prefix', 'in none');
select pg_create_restore_point('point ' || :round);
select pg_switch_wal();

select pg_replication_origin_create('o1');
select pg_replication_origin_advance('o1', '0/1234567');
select pg_replication_origin_session_setup('o1');
begin; select pg_replication_origin_xact_setup('0/2345678', now()); insert into px values (6000 + :round, 'origin'); commit;
select pg_replication_origin_session_reset();
select pg_replication_origin_drop('o1');

select pg_replication_origin_create('o2');
select pg_replication_origin_session_setup('o2');
begin; select pg_replication_origin_xact_setup('0/345', now()); insert into px values (7000 + :round, 'origin'); commit;
begin; select pg_replication_origin_xact_setup('0/346', now()); insert into px values (7100 + :round, 'origin'); prepare transaction 'po';
commit prepared 'po';
select pg_replication_origin_session_reset();

truncate px;
insert into px select g, '' from generate_series(1, 50) g;
alter table px add column z int default 3;
vacuum full pg_class;
vacuum full pg_attribute;
update px set a = a + 10000;
set synchronous_commit = off;
insert into px values (8000 + :round, 'asynchronous');
reset synchronous_commit;
select pg_current_xact_id();

begin;
insert into px values (5000 + :round, 'left prepared');
savepoint s;
create table made_by_prepared(a int);
insert into made_by_prepared values (1);
prepare transaction 'p_stays';
checkpoint;
