-- Heaps: HOT chains, pruning, freezing, locks, visibility map, multi-inserts, TOAST, subtransactions, speculation.
-- Variables: n rows, tmpcopy a file that the server may write.

-- HOT chains, updates that share a prefix or suffix, redirected, dead and unused line pointers
create table hp(id int primary key, a int, b text, c text) with (fillfactor = 70);
insert into hp select g, g, repeat('b', g % 100), 'c' from generate_series(1, :n) g;
do $$ begin
	for i in 1..8 loop
		update hp set a = a + 1 where id % 11 = 0;
		update hp set b = b || 'z' where id % 13 = 0;
	end loop;
end $$;
update hp set id = id + 1000000 where id % 97 = 0;
delete from hp where id % 7 = 0;
vacuum hp;
vacuum (freeze) hp;

-- changes that clear all-visible and all-frozen bits
delete from hp where id % 503 = 0;
update hp set a = 0 where id % 509 = 0;
insert into hp values (-1, 1, '', '');
select 1 from hp where id = 5 for update;

-- many rows a record: insert, COPY, COPY into a table of the same transaction with rows frozen at once
copy hp to :'tmpcopy';
create table hc (like hp);
copy hc from :'tmpcopy';
begin; create table hf (like hp); copy hf from :'tmpcopy' with (freeze); commit;
begin; truncate hf; copy hf from :'tmpcopy' with (freeze); commit;
vacuum hf;

-- TOAST: external, compressed, inline
create table tst(id int, e text, x text, m bytea);
alter table tst alter e set storage external;
insert into tst
	select g, repeat(md5(g::text), 200), (select string_agg(md5((g * 1000 + i)::text), '') from generate_series(1, 200) i), decode(md5(g::text), 'hex')
	from generate_series(1, 120) g;
update tst set e = e || 'q' where id % 3 = 0;
delete from tst where id % 2 = 0;
vacuum tst;

-- more than 64 subtransactions, a fifth of them aborted; savepoints released and rolled back to
create table st(a int);
do $$ begin
	for i in 1..200 loop
		begin
			insert into st values (i);
			if i % 5 = 0 then raise exception 'x'; end if;
		exception when raise_exception then null;
		end;
	end loop;
end $$;
begin;
insert into st values (1);
savepoint a; delete from st where a = 1; rollback to a;
update st set a = a + 1 where a < 5;
savepoint b; insert into st values (9); release b;
rollback;

-- speculative insertion, rows that move between partitions
create table oc(k int primary key, v int);
insert into oc select g, 0 from generate_series(1, 500) g on conflict do nothing;
insert into oc select g, 1 from generate_series(250, 900) g on conflict (k) do update set v = oc.v + 1;
create table part(k int, v int) partition by range(k);
create table part1 partition of part for values from (0) to (100);
create table part2 partition of part for values from (100) to (200);
insert into part select g, 0 from generate_series(0, 199) g;
update part set k = k + 100 where k < 50;
