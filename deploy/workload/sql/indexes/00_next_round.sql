-- Makes room for another round. Variables: round, the one that begins. Extensions stay reachable.

alter schema public rename to indexes_before_:round;
create schema public;
do $$
declare e text;
begin
	foreach e in array array['pg_trgm', 'btree_gin', 'btree_gist', 'bloom'] loop
		execute 'alter extension ' || e || ' set schema public';
	end loop;
end $$;
