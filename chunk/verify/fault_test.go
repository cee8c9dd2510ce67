package verify_test

import (
	"bytes"
	"encoding/binary"
	"strings"
	"testing"

	"everpage/chunk/verify"
	"everpage/deploy/workload"
	"everpage/redo"
	"everpage/wal"
	"everpage/wal/pg"
)

// spoiled are the bytes with one bit of one of them flipped.
func spoiled(b []byte, at int) []byte {
	b = bytes.Clone(b)
	b[at] ^= 1
	return b
}

// caught counts the mismatches of a run by the record that showed it, or for those of the final comparison by the page or object.
func caught(t *testing.T, o verify.Options) map[string]int {
	t.Helper()
	found := map[string]int{}
	o.Found = func(m verify.Mismatch) {
		if m.Record == "final" {
			found["final "+m.Page]++
		} else if strings.Contains(m.Text, "visibility bits") {
			found["vm"]++
		} else {
			found[m.Record]++
		}
	}
	report, err := verify.Run(t.Context(), o)
	if err != nil {
		t.Fatal(err)
	}
	if report.OK() {
		t.Error("a run with faults was found right")
	}
	return found
}

func expect(t *testing.T, found map[string]int, wants ...string) {
	t.Helper()
	for _, want := range wants {
		n := 0
		for what, k := range found {
			if strings.HasPrefix(what, want) {
				n += k
			}
		}
		if n == 0 {
			t.Errorf("the fault that %q should show went unnoticed; found were %v", want, found)
		}
		t.Logf("%s: %d mismatches", want, n)
	}
}

// A fault of a manager's redo is found by the after-images of its records. Faults of Heap and Heap2 show on each other's pages, so each has a run.
func TestFaultsOfPages(t *testing.T) {
	files := corpus(t, 15, workload.Mixed)
	t.Run("Heap2, Btree, Sequence, visibility map", func(t *testing.T) {
		found := caught(t, verify.Options{Base: files.Base, WAL: files.WAL, Fault: func(d *redo.Delta) {
			switch {
			case d.Part == redo.PartVMClear:
				// The neighbour's bits go instead of this heap block's.
				d.Main = spoiled(d.Main[:5], 0)
			case d.Rmgr == wal.RmHeap2 && d.Info&0x70 == 0x10 && d.Part == 0 && len(d.Data) > 0: // PRUNE
				d.Data = spoiled(d.Data, len(d.Data)-2)
			case d.Rmgr == wal.RmBtree && d.Info&0xF0 == 0x00 && d.Part == 0: // INSERT_LEAF
				d.Data = spoiled(d.Data, len(d.Data)-1)
			case d.Rmgr == wal.RmSequence:
				d.Main = spoiled(d.Main, len(d.Main)-9) // log_cnt
			}
		}})
		expect(t, found, "Heap2/", "Btree/", "Sequence/", "vm")
	})
	t.Run("Heap", func(t *testing.T) {
		found := caught(t, verify.Options{Base: files.Base, WAL: files.WAL, Fault: func(d *redo.Delta) {
			if d.Rmgr == wal.RmHeap && d.Info&0x70 == 0x00 && d.Part == 0 && len(d.Data) > 5 { // INSERT
				d.Data = spoiled(d.Data, len(d.Data)-1)
			}
		}})
		expect(t, found, "Heap/")
	})
}

// The same for the other index methods, whose pages have nothing to do with each other.
func TestFaultsOfIndexPages(t *testing.T) {
	files := corpus(t, 15, workload.Indexes)
	main := func(d *redo.Delta, op, part uint8, at int) {
		if d.Info&0x70 == op && d.Part == part {
			d.Main = spoiled(d.Main, at)
		}
	}
	found := caught(t, verify.Options{Base: files.Base, WAL: files.WAL, Fault: func(d *redo.Delta) {
		switch d.Rmgr {
		case wal.RmHash:
			main(d, 0x60, 1, 2) // a bucket's flags
		case wal.RmGist:
			main(d, 0x30, 2, 0) // a split's right link
		case wal.RmGin:
			main(d, 0x60, 0, 16+12) // pending pages
		case wal.RmSPGist:
			main(d, 0x50, 3, 8) // a split's downlink
		case wal.RmBRIN:
			main(d, 0x10, 1, 8) // where a range's tuple is
		case wal.RmGeneric:
			if len(d.Data) > 4 {
				d.Data = spoiled(d.Data, 4)
			}
		}
	}})
	expect(t, found, "Hash/", "Gist/", "Gin/", "SPGist/", "BRIN/", "Generic/")
}

// What no after-image tells of shows in the data directory that was stopped at the end.
func TestFaultsBeyondPages(t *testing.T) {
	files := corpus(t, 15, workload.Mixed)
	found := caught(t, verify.Options{
		Base: files.Base, WAL: files.WAL, Final: files.Final, Strip: true,
		Fault: func(d *redo.Delta) {
			slru, ok := d.Key.SLRU()
			if !ok || len(d.Main) == 0 {
				return
			}
			switch slru {
			case pg.Xact:
				d.Main = spoiled(d.Main, 0)
				d.Main[0] = 3 - (d.Main[0]^1)&3 // committed for aborted
			case pg.MultiXactOffsets:
				d.Main = spoiled(d.Main, 2)
			case pg.MultiXactMembers:
				d.Main = spoiled(d.Main, 2)
			case pg.CommitTs:
				d.Main = spoiled(d.Main, 0)
			}
		},
		FaultChanges: func(rec *wal.Record, ch *redo.Changes) {
			for i := range ch.Meta {
				m := &ch.Meta[i]
				if m.Kind == redo.MetaTablespace {
					m.ID[0]++
				}
				if len(m.Value) == 0 {
					continue // one that goes
				}
				switch m.Kind {
				case redo.MetaRelMap:
					m.Value = spoiled(m.Value, 20)
				case redo.MetaTwoPhase:
					m.Value = spoiled(m.Value, 40)
				case redo.MetaDatabase:
					m.Value = []byte("14\n")
				case redo.MetaOrigin:
					m.Value = spoiled(m.Value, 0)
				}
			}
			if rec.Rmgr == wal.RmStorage {
				for i := range ch.Sizes {
					if s := &ch.Sizes[i]; s.Op == redo.SizeTruncate && s.Fork.Fork == pg.MainFork {
						s.Blocks++
					}
				}
			}
		},
		FaultRecord: func(rec *wal.Record) {
			if rec.Rmgr == wal.RmXLOG && rec.Op() <= 0x10 { // checkpoints: the counters that they carry
				rec.Main = bytes.Clone(rec.Main)
				const nextOid = 32
				binary.LittleEndian.PutUint32(rec.Main[nextOid:], binary.LittleEndian.Uint32(rec.Main[nextOid:])+1)
			}
		},
	})
	expect(t, found, "final pg_xact", "final pg_multixact/offsets", "final pg_multixact/members", "final pg_commit_ts", "final relation map",
		"final state of prepared", "final PG_VERSION", "final tablespace", "final replication origin", "final pg_control", "final 1663/5/")
}

// Drops and truncations that are forgotten leave more than the primary has. A page of the commit log that is begun where another one is leaves less.
func TestForgottenDrops(t *testing.T) {
	files := corpus(t, 15, workload.Mixed)
	var dropped string
	found := caught(t, verify.Options{Base: files.Base, WAL: files.WAL, Final: files.Final, Strip: true,
		FaultChanges: func(rec *wal.Record, ch *redo.Changes) {
			kept := ch.Sizes[:0]
			for _, s := range ch.Sizes {
				if s.Op != redo.SizeDrop {
					kept = append(kept, s)
				} else {
					dropped = s.Fork.String()
				}
			}
			ch.Sizes = kept
			ch.DropDatabases = ch.DropDatabases[:0]
			ch.SLRUTruncates = ch.SLRUTruncates[:0]
			if rec.Rmgr == wal.RmCLOG {
				for i := range ch.Pages {
					c := &ch.Pages[i]
					c.Key.Block--
					c.Delta.Key = c.Key
				}
			}
		}})
	if dropped == "" {
		t.Fatal("nothing is dropped in this corpus")
	}
	expect(t, found, "final 16384/", "final 1663/5/", "final pg_commit_ts/", "final pg_xact page")
}
