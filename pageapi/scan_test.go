package pageapi

import (
	"context"
	"net"
	"slices"
	"strings"
	"sync"
	"testing"

	"google.golang.org/grpc"

	"everpage/cluster/placement"
	"everpage/pageapi/datadir"
	pb "everpage/pageapi/pagepb/everpage/v1"
	"everpage/wal/pg"
)

// brokenPages has ten relations of 300 blocks with a free space map each; redo of block 200 fails in every third, and of all blocks of all maps.
type brokenPages struct {
	fakePages
	fail Code // of another error, in relation 9
}

func (f *brokenPages) Relations(_ context.Context, _ Position, fn func(pg.RelFork, pg.BlockNumber) error) error {
	for i := range pg.Oid(10) {
		for _, fork := range []pg.ForkNumber{pg.MainFork, pg.FSMFork} {
			rel := testRel
			rel.Rel, rel.Fork = i, fork
			if err := fn(rel, 300); err != nil {
				return err
			}
		}
	}
	return nil
}

func (f *brokenPages) Page(_ context.Context, _ Position, key pg.PageKey, dst []byte) error {
	if key.Fork == pg.FSMFork || key.Rel%3 == 0 && key.Block == 200 {
		return Errorf(Corrupt, "redo of block %d fails", key.Block)
	}
	if f.fail != 0 && key.Rel == 8 {
		return Errorf(f.fail, "the node has another trouble")
	}
	clear(dst)
	return nil
}

// scanned scans all relations and lists what is damaged.
func scanned(t *testing.T, f *brokenPages) (rels []pg.Oid, bytes int64, err error) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	f.shardMap.Store(placement.Single(placement.Node{Name: "n", Address: l.Addr().String()}, 64, 16))
	server := grpc.NewServer(ServerOptions()...)
	pb.RegisterPageServiceServer(server, NewServer(f))
	var served sync.WaitGroup
	served.Go(func() { server.Serve(l) })
	defer served.Wait()
	defer server.Stop()
	c := newTestClient(t, l.Addr().String())
	s, err := c.Snapshot(t.Context(), Position{})
	if err != nil {
		t.Fatal(err)
	}
	if err := s.Scan(t.Context(), 3, func(b int64) { bytes = b }); err != nil {
		return nil, bytes, err
	}
	err = s.Damaged(t.Context(), s.LSN(), func(d datadir.Damage) error {
		if d.Spc == 0 {
			return nil // what the state tells
		}
		if !strings.Contains(d.Err.Error(), "redo of block 200 fails") || d.Fork != pg.MainFork {
			t.Errorf("%s: %v", d.RelFork, d.Err)
		}
		rels = append(rels, d.Rel)
		return nil
	})
	slices.Sort(rels)
	return rels, bytes, err
}

// A scan finds what no node knows of before it makes the page, and tells it as damage of the relation. The free space map is not asked for.
func TestScanFindsPagesThatCannotBeMade(t *testing.T) {
	rels, bytes, err := scanned(t, &brokenPages{})
	if err != nil || !slices.Equal(rels, []pg.Oid{0, 3, 6, 9}) {
		t.Errorf("damaged: %v, %v", rels, err)
	}
	if want := int64(6*300+4*128) * pg.BlockSize; bytes != want {
		t.Errorf("%d bytes were read, want %d", bytes, want)
	}
}

// Any other error is none of the relation: the scan ends with it.
func TestScanEndsWithOtherErrors(t *testing.T) {
	if _, _, err := scanned(t, &brokenPages{fail: Internal}); CodeOf(err) != Internal {
		t.Errorf("%v", err)
	}
}
