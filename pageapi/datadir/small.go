package datadir

import (
	"bytes"
	"context"
	"encoding/binary"
	"fmt"
	"hash/crc32"

	"everpage/wal/pg"
)

// small adds the versions and relation maps of databases, prepared transactions and replication origins.
func (b *builder) small(context.Context) error {
	version := fmt.Appendf(nil, "%d\n", b.major)
	for _, d := range b.c.Databases {
		if !bytes.Equal(d.Version, version) {
			return fmt.Errorf("PG_VERSION of database %d says %q, the cluster is of PostgreSQL %d", d.DB, d.Version, b.major)
		}
		if err := b.static(b.major.DatabaseDir(d.Spc, d.DB)+"/PG_VERSION", d.Version); err != nil {
			return err
		}
	}
	shared := false
	for _, m := range b.c.RelMaps {
		if err := b.static(b.major.DatabaseDir(m.Spc, m.DB)+"/pg_filenode.map", m.Data); err != nil {
			return err
		}
		shared = shared || m.Spc == pg.GlobalTablespace
	}
	if !shared {
		return fmt.Errorf("the relation map of shared catalogs is missing at %s: no server can start without it", b.o.At)
	}
	for _, t := range b.c.TwoPhase {
		if err := b.twoPhase(t); err != nil {
			return err
		}
	}
	return b.origins()
}

// twoPhase adds a prepared transaction's state file.
func (b *builder) twoPhase(t TwoPhase) error {
	n := len(t.State) - 4
	if n < 0 || n%8 != 0 || binary.LittleEndian.Uint32(t.State[n:]) != crc32.Checksum(t.State[:n], castagnoli) {
		return fmt.Errorf("state of prepared transaction %d is damaged: its CRC does not fit", t.XID)
	}
	next := b.c.Control.Copy.NextXID
	epoch := uint64(next.Epoch())
	if t.XID >= next.XID() {
		// It began before the counter wrapped around.
		if epoch == 0 {
			return fmt.Errorf("prepared transaction %d is not below the next transaction ID %d: the source is at odds with itself", t.XID, next.XID())
		}
		epoch--
	}
	name := b.major.TwoPhaseName(pg.FullTransactionID(epoch<<32 | uint64(t.XID)))
	return b.static("pg_twophase/"+name, t.State)
}

// originMagic begins pg_logical/replorigin_checkpoint (REPLICATION_STATE_MAGIC).
const originMagic = 0x1257DADE

// origins adds the progress of replication origins (CheckPointReplicationOrigin).
func (b *builder) origins() error {
	if len(b.c.Origins) == 0 {
		return nil
	}
	le := binary.LittleEndian
	f := le.AppendUint32(nil, originMagic)
	for _, o := range b.c.Origins {
		f = le.AppendUint16(f, o.ID)
		f = append(f, 0, 0, 0, 0, 0, 0)
		f = le.AppendUint64(f, uint64(o.RemoteLSN))
	}
	f = le.AppendUint32(f, crc32.Checksum(f, castagnoli))
	return b.static("pg_logical/replorigin_checkpoint", f)
}
