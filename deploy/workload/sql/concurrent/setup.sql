-- Tables that many sessions lock and change at once.
create table if not exists mx(id int primary key, v int, w text);
insert into mx select g, 0, 'w' from generate_series(1, 300) g on conflict do nothing;
create table if not exists mxc(id int references mx(id), x int);
create table if not exists spec(k int primary key, j int unique, v int);

-- more multixacts than a page of their offsets holds: a lock and, in a subtransaction, an update of each row
create table if not exists mxo(id int primary key, v int) with (fillfactor = 10);
insert into mxo select g, 0 from generate_series(1, 2500) g on conflict do nothing;
do $$ begin
	for i in 1..2500 loop
		perform 1 from mxo where id = i for key share;
		begin
			update mxo set v = v + 1 where id = i;
		exception when division_by_zero then null;
		end;
	end loop;
end $$;
