-- System catalogs rewritten and indexed anew, object ids used up until more are logged; once.
vacuum full pg_proc;
vacuum full pg_authid;
reindex system postgres;
select count(pg_nextoid('pg_class', 'oid', 'pg_class_oid_index')) from generate_series(1, 9000);
