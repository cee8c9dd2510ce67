package importer

import (
	"encoding/binary"
	"fmt"
	"hash/crc32"
	"maps"
	"slices"

	"everpage/redo"
	"everpage/wal/pg"
)

// inPlace records the tablespaces that nobody named but that files lie in: directories in pg_tblspc (allow_in_place_tablespaces), which come with
// PGDATA and have no location.
func (im *Importer) inPlace() error {
	for _, oid := range slices.Sorted(maps.Keys(im.spaces)) {
		if im.spaces[oid] {
			continue
		}
		if err := im.w.Meta(redo.MetaTablespace, [2]uint32{oid}, im.opts.Start, []byte{}); err != nil {
			return err
		}
	}
	return nil
}

// replorigin_checkpoint (CheckPointReplicationOrigin): a magic, entries of {uint16 origin, 6 bytes padding, uint64 remote LSN}, a CRC-32C.
const (
	originsMagic     = 0x1257DADE
	originsEntrySize = 16
)

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

// ReadOrigins reads replorigin_checkpoint: the remote LSN up to which each replication origin was replayed.
func ReadOrigins(b []byte) (map[uint32]pg.LSN, error) {
	le := binary.LittleEndian
	if len(b) < 8 || (len(b)-8)%originsEntrySize != 0 || le.Uint32(b) != originsMagic {
		return nil, fmt.Errorf("%d bytes are not a replication origin checkpoint", len(b))
	}
	entries, crc := b[4:len(b)-4], le.Uint32(b[len(b)-4:])
	if got := crc32.Checksum(b[:len(b)-4], castagnoli); got != crc {
		return nil, fmt.Errorf("replication origin checkpoint has CRC %08X, its content %08X", crc, got)
	}
	origins := map[uint32]pg.LSN{}
	for e := entries; len(e) > 0; e = e[originsEntrySize:] {
		origins[uint32(le.Uint16(e))] = pg.LSN(le.Uint64(e[8:]))
	}
	return origins, nil
}

func (im *Importer) origins(b []byte) error {
	origins, err := ReadOrigins(b)
	if err != nil {
		return err
	}
	for _, origin := range slices.Sorted(maps.Keys(origins)) {
		value := binary.LittleEndian.AppendUint64(nil, uint64(origins[origin]))
		if err := im.w.Meta(redo.MetaOrigin, [2]uint32{origin}, im.opts.Start, value); err != nil {
			return err
		}
	}
	return nil
}
