// Package stream talks to a PostgreSQL primary: connections, identity, replication slots, base backups and the stream of WAL over the
// physical replication protocol. It also walks data directories on disk, which look to an importer just as a base backup does.
//
// Nothing here keeps WAL or pages: what arrives is handed to a Sink or to a function of the caller.
package stream
