package pg

import (
	"encoding/hex"
	"math/rand/v2"
	"testing"
)

func TestCheckPointRoundTrip(t *testing.T) {
	for _, m := range Majors() {
		c := CheckPoint{
			Redo: 0x0102030405060708, Timeline: 9, PrevTimeline: 8, FullPageWrites: true, NextXID: 3<<32 | 77, NextOid: 16400,
			NextMulti: 5, NextMultiOffset: 11, OldestXID: 726, OldestXIDDB: 1, OldestMulti: 2, OldestMultiDB: 4, Time: 1700000000,
			OldestCommitTs: 800, NewestCommitTs: 900, OldestActiveXID: 901,
		}
		if m >= 17 {
			c.WALLevel = WALLevelLogical
		}
		b := c.Encode(m)
		if len(b) != CheckPointSize {
			t.Fatalf("major %d: %d bytes", m, len(b))
		}
		got, err := DecodeCheckPoint(m, b)
		if err != nil || got != c {
			t.Errorf("major %d: got %+v, %v, want %+v", m, got, err, c)
		}
		if _, err := DecodeCheckPoint(m, b[:CheckPointSize-1]); err == nil {
			t.Errorf("major %d: a cut checkpoint decodes", m)
		}
	}
	if _, err := DecodeCheckPoint(13, make([]byte, CheckPointSize)); err == nil {
		t.Error("major 13 decodes")
	}
}

// The bytes are laid out by hand after the struct's C declaration, independently of the offsets in the code.
func TestCheckPointLayout(t *testing.T) {
	b, err := hex.DecodeString("28000001000000000" + "1000000" + "01000000" + "01" + "000000" + "01000000" +
		"d702000001000000" + "10400000" + "03000000" + "07000000" + "d0020000" + "01000000" + "01000000" + "05000000" + "00000000" +
		"00f1536500000000" + "0a000000" + "0b000000" + "d6020000" + "0000000" + "0")
	if err != nil {
		t.Fatal(err)
	}
	want := CheckPoint{
		Redo: 0x1000028, Timeline: 1, PrevTimeline: 1, FullPageWrites: true, WALLevel: WALLevelReplica, NextXID: 1<<32 | 0x2d7, NextOid: 0x4010,
		NextMulti: 3, NextMultiOffset: 7, OldestXID: 0x2d0, OldestXIDDB: 1, OldestMulti: 1, OldestMultiDB: 5, Time: 1700000000,
		OldestCommitTs: 10, NewestCommitTs: 11, OldestActiveXID: 0x2d6,
	}
	got, err := DecodeCheckPoint(17, b)
	if err != nil || got != want {
		t.Errorf("17: got %+v, %v, want %+v", got, err, want)
	}
	want.WALLevel = 0
	if got, err = DecodeCheckPoint(15, b); err != nil || got != want {
		t.Errorf("15: got %+v, %v, want %+v", got, err, want)
	}
}

func FuzzCheckPoint(f *testing.F) {
	r := rand.New(rand.NewPCG(1, 2))
	b := make([]byte, CheckPointSize)
	for i := range b {
		b[i] = byte(r.Uint32())
	}
	f.Add(uint8(15), b)
	f.Add(uint8(17), b[:20])
	f.Fuzz(func(t *testing.T, m uint8, b []byte) {
		c, err := DecodeCheckPoint(Major(m), b)
		if err != nil {
			return
		}
		again, err := DecodeCheckPoint(Major(m), c.Encode(Major(m)))
		if err != nil || again != c {
			t.Fatalf("%+v becomes %+v, %v", c, again, err)
		}
	})
}
