-- BRIN: summaries made, updated in place and moved, taken away, a revmap of two pages; bloom, for generic WAL.
-- Variables: n rows.

create extension if not exists bloom;
create table br(a int, b text, c inet, ts timestamptz) with (fillfactor = 40);
create index br_a on br using brin(a) with (pages_per_range = 1, autosummarize = on);
create index br_b on br using brin(b) with (pages_per_range = 2);
create index br_c on br using brin(c inet_inclusion_ops) with (pages_per_range = 4);
create index br_mm on br using brin(a int4_minmax_multi_ops) with (pages_per_range = 1);
create index br_bl on br using brin(a int4_bloom_ops) with (pages_per_range = 8);
insert into br select g, repeat('b', g % 200), ('1.2.3.' || g % 256)::inet, now() from generate_series(1, :n * 2) g;
select brin_summarize_new_values('br_a');
update br set a = a * 1000, b = repeat('B', 1500) where a % 37 = 0;
vacuum br;
insert into br select -g, repeat(md5(g::text), 20), null, now() from generate_series(1, :n) g;
vacuum br;
select brin_desummarize_range('br_a', 0), brin_desummarize_range('br_b', 10);
select brin_summarize_range('br_a', 0);

-- more ranges than one revmap page holds: a page a row
create table brx(a int, t text) with (fillfactor = 10);
create index brx_a on brx using brin(a) with (pages_per_range = 1);
insert into brx select g, repeat('x', 900) from generate_series(1, 1600) g;
vacuum brx;
create index brx_t on brx using brin(t) with (pages_per_range = 1);
update brx set t = repeat(chr(65 + a % 26), 1200) where a % 29 = 0;
vacuum brx;

create table bl(a int, b int, c int);
create index bl_i on bl using bloom(a, b, c) with (length = 64);
insert into bl select g % 100, g % 1000, g from generate_series(1, :n) g;
delete from bl where c % 2 = 0;
vacuum bl;
insert into bl select g, g, g from generate_series(1, 3000) g;
