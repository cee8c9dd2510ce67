-- Tables that many sessions lock and change at once.
create table if not exists mx(id int primary key, v int, w text);
insert into mx select g, 0, 'w' from generate_series(1, 300) g on conflict do nothing;
create table if not exists mxc(id int references mx(id), x int);
create table if not exists spec(k int primary key, j int unique, v int);
