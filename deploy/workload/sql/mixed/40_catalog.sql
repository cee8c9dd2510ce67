-- System catalogs rewritten and indexed anew, once.
vacuum full pg_proc;
vacuum full pg_authid;
reindex system postgres;
