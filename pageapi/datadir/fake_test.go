package datadir

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"time"

	"everpage/wal/pg"
)

// fake is a small cluster that was never one: its pages bear their fork and block number.
type fake struct {
	cluster   Cluster
	relations []Relation
	slrus     map[pg.SLRU][]SLRUSegment
	damage    []Damage
	lsn       pg.LSN // of every page
	failBlock pg.BlockNumber
	reads     func()
}

var errRead = errors.New("the source fails")

func newFake(m pg.Major) *fake {
	map0 := make([]byte, 512)
	binary.LittleEndian.PutUint32(map0, mapMagic)
	return &fake{
		lsn:       0x1000,
		failBlock: pg.InvalidBlock,
		cluster: Cluster{
			Control: pg.ControlFile{Major: m, SystemID: 42, WALSegmentSize: 1 << 20, WALLevel: pg.WALLevelReplica, MaxConnections: 100, MaxWorkerProcesses: 8,
				MaxWALSenders: 10, MaxPreparedXacts: 3, MaxLocksPerXact: 64,
				Copy: pg.CheckPoint{Timeline: 1, NextXID: 5<<32 | 1000, NextOid: 20000, NextMulti: 1, OldestXID: 700, OldestMulti: 1}},
			Databases: []Database{{Spc: pg.DefaultTablespace, DB: 5, Version: fmt.Appendf(nil, "%d\n", m)}},
			RelMaps:   []RelMap{{Spc: pg.GlobalTablespace, Data: map0}, {Spc: pg.DefaultTablespace, DB: 5, Data: map0}},
		},
		slrus: map[pg.SLRU][]SLRUSegment{},
	}
}

func (s *fake) add(rel pg.Oid, f pg.ForkNumber, blocks pg.BlockNumber) {
	s.relations = append(s.relations, Relation{RelFork: pg.RelFork{RelFileLocator: pg.RelFileLocator{Spc: pg.DefaultTablespace, DB: 5, Rel: rel}, Fork: f}, Blocks: blocks})
}

func fakeState(n int) []byte {
	b := make([]byte, n)
	return binary.LittleEndian.AppendUint32(b, crc32.Checksum(b, castagnoli))
}

func (s *fake) options() Options {
	return Options{At: 0x2345678, Timeline: 9, Reason: "a test", Now: time.Unix(1700000000, 0)}
}

func (s *fake) Cluster(context.Context, pg.LSN) (*Cluster, error) {
	c := s.cluster
	return &c, nil
}

func (s *fake) Relations(_ context.Context, _ pg.LSN, fn func(Relation) error) error {
	for _, r := range s.relations {
		if err := fn(r); err != nil {
			return err
		}
	}
	return nil
}

func (s *fake) SLRUSegments(_ context.Context, _ pg.LSN, slru pg.SLRU) ([]SLRUSegment, error) {
	return s.slrus[slru], nil
}

func (s *fake) ReadBlocks(_ context.Context, f pg.RelFork, first pg.BlockNumber, _ pg.LSN, dst []byte) error {
	if s.reads != nil {
		s.reads()
	}
	for i := 0; i < len(dst); i += pg.BlockSize {
		block := first + pg.BlockNumber(i/pg.BlockSize)
		if block == s.failBlock {
			return errRead
		}
		p := pg.Page(dst[i : i+pg.BlockSize])
		p.Init(0)
		p.SetLSN(s.lsn)
		p.SetStoredChecksum(0xBAD)
		binary.LittleEndian.PutUint32(p[100:], f.Rel)
		binary.LittleEndian.PutUint32(p[104:], block)
		p[108] = byte(f.Fork)
	}
	return nil
}

func (s *fake) Damaged(_ context.Context, _ pg.LSN, fn func(Damage) error) error {
	for _, d := range s.damage {
		if err := fn(d); err != nil {
			return err
		}
	}
	return nil
}
