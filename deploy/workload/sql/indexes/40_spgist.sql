-- SP-GiST: leaf moves, pick-splits, new nodes, split tuples, redirects and their cleaning. Variables: n rows.

create table sp(id int, t text, p point, ip inet, r int4range);
create index sp_t on sp using spgist(t);
create index sp_q on sp using spgist(p quad_point_ops);
create index sp_k on sp using spgist(p kd_point_ops);
create index sp_ip on sp using spgist(ip);
create index sp_r on sp using spgist(r);
insert into sp
	select g, 'p/' || repeat(chr(97 + g % 5), g % 90) || md5(g::text), point(random() * 100, random() * 100),
		('10.' || g % 256 || '.' || (g / 256) % 256 || '.1')::inet, int4range(g % 1000, g % 1000 + 5)
	from generate_series(1, :n) g;
-- identical keys
insert into sp select g, repeat('z', (g % 400)), point(g % 3, g % 3) from generate_series(1, 900) g;
-- keys that add nodes and split prefixes
insert into sp select g, 'q' || chr(33 + g % 90) || chr(33 + g % 83) || g, null, null, null from generate_series(1, 1300) g;
insert into sp(t) select repeat('common prefix that is long ', 10) || g from generate_series(1, 500) g;
insert into sp(t) values ('common pre'), ('common prefix that IS'), ('c'), ('');
delete from sp where id % 2 = 0;
vacuum sp;
insert into sp(id, t, p) select g, md5(g::text), point(g, g % 3) from generate_series(1, :n) g;
delete from sp where id % 3 <> 0;
vacuum sp;
vacuum sp;

-- a root that is a leaf vacuumed, redirects removed
create table sr(t text);
create index on sr using spgist(t);
insert into sr select 'a' from generate_series(1, 100);
delete from sr;
vacuum sr;
insert into sr select md5(g::text) from generate_series(1, 1500) g;
delete from sr;
vacuum sr;
select txid_current();
vacuum sr;

create index sp_bulk on sp using spgist(t);
create unlogged table su(t text);
create index on su using spgist(t);
insert into su select md5(g::text) from generate_series(1, 1000) g;
