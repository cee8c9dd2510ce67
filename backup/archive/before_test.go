package archive

import (
	"slices"
	"testing"
	"time"

	"everpage/backup/store"
	"everpage/wal"
	"everpage/wal/pg"
)

// TestBeforeKeepsTheLastByte: of what lies before an LSN the segment with the last byte stays, be it at that segment's end.
func TestBeforeKeepsTheLastByte(t *testing.T) {
	m, id := store.NewMemory(), ID{SystemID: 7, SegmentSize: wal.MinSegmentSize}
	size := pg.LSN(wal.MinSegmentSize)
	var names []string
	for number := range uint64(4) {
		name := id.segmentName(1, 2+number)
		if err := m.Put(t.Context(), name, store.Bytes(make([]byte, size))); err != nil {
			t.Fatal(err)
		}
		names = append(names, name)
	}
	for at, want := range map[pg.LSN]int{0: 0, 1: 0, 2 * size: 0, 3 * size: 0, 3*size + 1: 1, 4 * size: 1, 4*size + 1: 2, 5*size - 1: 2, 6 * size: 3} {
		list, err := Before(t.Context(), m, id, at, time.Now().Add(time.Hour))
		if err != nil {
			t.Fatal(err)
		}
		var got []string
		for _, i := range list {
			got = append(got, i.Name)
		}
		if slices.Sort(got); !slices.Equal(got, names[:want]) {
			t.Errorf("before %s: %v, want %v", at, got, names[:want])
		}
	}
}
