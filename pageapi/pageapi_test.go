package pageapi

import (
	"context"
	"encoding/binary"
	"errors"
	"net"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"go.uber.org/goleak"
	"google.golang.org/grpc"
	"google.golang.org/grpc/mem"

	"everpage/cluster/placement"
	"everpage/pageapi/datadir"
	pb "everpage/pageapi/pagepb/everpage/v1"
	"everpage/wal/pg"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// fakePages has relation 1663/5/16384 with 1000 blocks; every page bears its block number and LSN. LSNs above 1000 are never readable.
type fakePages struct {
	Pages
	shardMap atomic.Pointer[placement.Map]
	refuse   atomic.Int64 // so many reads are answered with a wrong owner, and a newer map
	strange  atomic.Bool  // the node keeps nothing, and knows no newer map
	readable atomic.Int64 // 0: 1000
	main     atomic.Uint32
	slow     atomic.Int64 // nanoseconds that each read takes
	reads    atomic.Int64
	hung     atomic.Pointer[chan struct{}] // nothing is answered until it is closed
	damage   atomic.Uint32                 // a damaged block that this node knows of; 0: none
}

var testRel = pg.RelFork{RelFileLocator: pg.RelFileLocator{Spc: 1663, DB: 5, Rel: 16384}}

func (f *fakePages) hang(ctx context.Context) {
	if c := f.hung.Load(); c != nil {
		select {
		case <-*c:
		case <-ctx.Done():
		}
	}
}

func (f *fakePages) Map() *placement.Map {
	f.hang(context.Background())
	return f.shardMap.Load()
}

func (f *fakePages) Main() uint32 { return f.main.Load() }

func (f *fakePages) Readable(uint32) pg.LSN {
	if n := f.readable.Load(); n != 0 {
		return pg.LSN(n)
	}
	return 1000
}

func (f *fakePages) Position(ctx context.Context, at Position, wait time.Duration) (Position, error) {
	f.hang(ctx)
	switch main := f.main.Load(); {
	case at.Branch == 0:
		at.Branch = main
	case at.Main && main > at.Branch:
		return at, Errorf(MainMoved, "main is branch %d by now, not %d", main, at.Branch)
	case at.Main && main < at.Branch:
		t := time.NewTimer(wait)
		defer t.Stop()
		select {
		case <-ctx.Done():
		case <-t.C:
		}
		return at, Errorf(Unavailable, "this node has not heard of branch %d yet", at.Branch)
	}
	switch {
	case at.LSN == 0:
		at.LSN = f.Readable(0)
	case at.LSN > f.Readable(0):
		t := time.NewTimer(wait)
		defer t.Stop()
		select {
		case <-ctx.Done():
		case <-t.C:
		}
		return at, Errorf(Unavailable, "%s is not readable yet: the primary sleeps", at.LSN)
	}
	return at, nil
}

// Resolve knows the transactions that ended up to what is readable: each at the LSN that is its number.
func (f *fakePages) Resolve(ctx context.Context, t Target) (*Resolution, error) {
	f.hang(ctx)
	readable := f.Readable(0)
	if t.XID == nil {
		return &Resolution{LSN: readable, Branch: f.main.Load()}, nil
	}
	if pg.LSN(*t.XID) > readable {
		return nil, Errorf(NotFound, "transaction %d has no commit", *t.XID)
	}
	return &Resolution{LSN: pg.LSN(*t.XID), Branch: f.main.Load()}, nil
}

func (f *fakePages) Page(ctx context.Context, at Position, key pg.PageKey, dst []byte) error {
	f.reads.Add(1)
	if d := f.slow.Load(); d != 0 {
		select {
		case <-time.After(time.Duration(d)):
		case <-ctx.Done():
		}
	}
	if f.strange.Load() {
		return Errorf(WrongOwner, "this node doesn't keep %s", key)
	}
	if f.refuse.Load() > 0 {
		f.refuse.Add(-1)
		next := *f.Map()
		next.Epoch++
		f.shardMap.Store(&next)
		return Errorf(WrongOwner, "this node doesn't keep %s", key)
	}
	if key.RelFork != testRel || key.Block >= 1000 {
		return Errorf(NotFound, "%s does not exist", key)
	}
	clear(dst)
	binary.LittleEndian.PutUint32(dst[100:], key.Block)
	binary.LittleEndian.PutUint32(dst[300:], at.Branch)
	binary.LittleEndian.PutUint64(dst[200:], uint64(at.LSN))
	return nil
}

func (f *fakePages) Size(context.Context, Position, pg.RelFork) (pg.BlockNumber, error) {
	return 1000, nil
}

func (f *fakePages) Relations(ctx context.Context, at Position, fn func(pg.RelFork, pg.BlockNumber) error) error {
	for i := range pg.Oid(5000) {
		rel := testRel
		rel.Rel += i
		if err := fn(rel, i); err != nil {
			return err
		}
	}
	return nil
}

func (f *fakePages) History(_ context.Context, at Position, key pg.PageKey, fn func(Version) error) error {
	for lsn := at.LSN; lsn > 0; lsn-- {
		if err := fn(Version{LSN: lsn, Kind: "delta", Record: "Heap/INSERT", Bytes: 7}); err != nil {
			return err
		}
	}
	return nil
}

func (f *fakePages) State(context.Context, Position) (*ClusterState, error) {
	c := datadir.Cluster{
		Control:     pg.ControlFile{Major: 15, SystemID: 7, WALSegmentSize: 16 << 20, Copy: pg.CheckPoint{NextXID: 99, Timeline: 1}},
		Databases:   []datadir.Database{{Spc: 1663, DB: 5, Version: []byte("15\n")}},
		RelMaps:     []datadir.RelMap{{Spc: 1664, Data: []byte{1, 2}}},
		Tablespaces: []datadir.Tablespace{{Oid: 70000, Location: "/x"}},
		TwoPhase:    []datadir.TwoPhase{{XID: 4, State: []byte{9}}},
		Origins:     []datadir.Origin{{ID: 1, RemoteLSN: 5}},
		Files:       []datadir.ConfigFile{{Path: "postgresql.conf", Mode: 0o600, Content: []byte("a=1")}},
	}
	damage := []Damage{{Key: pg.SLRUPage(pg.Xact, 3), Since: 8, Reason: "why"}}
	if n := f.damage.Load(); n != 0 {
		damage = append(damage, Damage{Key: pg.PageKey{RelFork: testRel, Block: n}, Since: 9, Reason: "it is mine"})
	}
	return &ClusterState{LSN: 1000, Cluster: c, Damage: damage, TimelineHistory: []byte("h")}, nil
}

// serve runs a page service over the fake on loopback. wrap, where set, may change answers.
func serve(t *testing.T, wrap func(*pagesAnswer)) (*fakePages, *Client) {
	t.Helper()
	n := newFakeNode(t, wrap)
	n.shardMap.Store(placement.Single(placement.Node{Name: "n", Address: n.address}, 64, 16))
	return &n.fakePages, newTestClient(t, n.address)
}

func newTestClient(t testing.TB, addresses ...string) *Client {
	c, err := NewClient(addresses)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	return c
}

// fakeNode is a page service over a fakePages.
type fakeNode struct {
	fakePages
	address string
	server  *grpc.Server
	served  sync.WaitGroup
}

func newFakeNode(t testing.TB, wrap func(*pagesAnswer)) *fakeNode {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	n := &fakeNode{address: l.Addr().String()}
	n.start(l, wrap)
	t.Cleanup(func() {
		if c := n.hung.Swap(nil); c != nil {
			close(*c)
		}
		n.kill()
	})
	return n
}

func (n *fakeNode) start(l net.Listener, wrap func(*pagesAnswer)) {
	opts := ServerOptions()
	if wrap != nil {
		opts = append(opts, grpc.StreamInterceptor(func(srv any, ss grpc.ServerStream, _ *grpc.StreamServerInfo, handler grpc.StreamHandler) error {
			return handler(srv, &tampering{ss, wrap})
		}))
	}
	n.server = grpc.NewServer(opts...)
	server := NewServer(&n.fakePages)
	pb.RegisterPageServiceServer(n.server, server)
	n.served.Go(func() { n.server.Serve(l) })
}

// kill ends the server as a killed process ends: its connections are closed.
func (n *fakeNode) kill() {
	n.server.Stop()
	n.served.Wait()
}

// stop makes the node answer nothing until the test ends, as a stopped process.
func (n *fakeNode) stop() {
	c := make(chan struct{})
	n.hung.Store(&c)
}

type tampering struct {
	grpc.ServerStream
	wrap func(*pagesAnswer)
}

func (s *tampering) SendMsg(m any) error {
	if r, ok := m.(*pagesAnswer); ok {
		s.wrap(r)
	}
	return s.ServerStream.SendMsg(m)
}

// A batch goes over shards and over what one request may carry, and comes back in order, all of one LSN.
func TestPagesOfManyShardsComeBackInOrder(t *testing.T) {
	_, c := serve(t, nil)
	if _, err := c.Map(t.Context()); err != nil {
		t.Fatal(err)
	}
	var blocks []pg.BlockNumber
	for i := range pg.BlockNumber(900) {
		blocks = append(blocks, (i*37)%1000)
	}
	dst := make([]byte, len(blocks)*pg.BlockSize)
	lsn, err := c.Pages(t.Context(), Position{}, testRel, blocks, dst)
	if err != nil || lsn != 1000 {
		t.Fatalf("LSN %s, %v", lsn, err)
	}
	for i, b := range blocks {
		page := dst[i*pg.BlockSize:]
		if got := binary.LittleEndian.Uint32(page[100:]); got != b {
			t.Fatalf("page %d is block %d, want %d", i, got, b)
		}
	}
}

func TestErrorsKeepTheirCode(t *testing.T) {
	_, c := serve(t, nil)
	page := make([]byte, pg.BlockSize)
	_, err := c.Pages(t.Context(), Position{}, testRel, []pg.BlockNumber{1000}, page)
	if CodeOf(err) != NotFound {
		t.Errorf("a block past the end: %v", err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 300*time.Millisecond)
	defer cancel()
	if _, err = c.Pages(ctx, Position{LSN: 2000}, testRel, []pg.BlockNumber{1}, page); CodeOf(err) != Unavailable {
		t.Errorf("an LSN of the future: %v", err)
	}
	if _, err = c.Pages(t.Context(), Position{}, pg.RelFork{Fork: 9}, []pg.BlockNumber{1}, page); CodeOf(err) != Invalid {
		t.Errorf("a fork that doesn't exist: %v", err)
	}
	if _, err = c.Pages(t.Context(), Position{}, testRel, []pg.BlockNumber{1}, page); err != nil {
		t.Errorf("the client doesn't go on after errors: %v", err)
	}
}

func TestWrongOwnerIsFollowed(t *testing.T) {
	f, c := serve(t, nil)
	f.refuse.Store(2)
	page := make([]byte, pg.BlockSize)
	if _, err := c.Pages(t.Context(), Position{}, testRel, []pg.BlockNumber{7}, page); err != nil {
		t.Fatal(err)
	}
	if m, _ := c.Map(t.Context()); m.Epoch != 3 {
		t.Errorf("the client knows the map of epoch %d, want 3", m.Epoch)
	}
	f.refuse.Store(100)
	if _, err := c.Pages(t.Context(), Position{}, testRel, []pg.BlockNumber{7}, page); CodeOf(err) != WrongOwner {
		t.Errorf("maps that never settle: %v", err)
	}
}

// Whatever is answered in place of what was asked for must be noticed.
func TestAnswersOfSomethingElseAreRefused(t *testing.T) {
	for name, tamper := range map[string]func(*pagesAnswer){
		"a flipped bit":    func(r *pagesAnswer) { r.pages.ReadOnlyData()[4000] ^= 1 },
		"another block":    func(r *pagesAnswer) { r.blocks = []uint32{8} },
		"another request":  func(r *pagesAnswer) { r.id++ },
		"another relation": func(r *pagesAnswer) { r.rel.Rel++ },
		"another LSN":      func(r *pagesAnswer) { r.lsn-- },
		"fewer pages": func(r *pagesAnswer) {
			whole := r.pages
			r.pages = mem.SliceBuffer(make([]byte, 100))
			whole.Free()
		},
		"more pages": func(r *pagesAnswer) {
			whole := r.pages
			r.pages = mem.SliceBuffer(make([]byte, 2*pg.BlockSize))
			whole.Free()
		},
		"no pages":           func(r *pagesAnswer) { r.drop() },
		"no checksum":        func(r *pagesAnswer) { r.checksum = 0 },
		"content of another": func(r *pagesAnswer) { binary.LittleEndian.PutUint32(r.pages.ReadOnlyData()[100:], 8) },
	} {
		t.Run(name, func(t *testing.T) {
			_, c := serve(t, tamper)
			page := make([]byte, pg.BlockSize)
			if _, err := c.Pages(t.Context(), Position{LSN: 500}, testRel, []pg.BlockNumber{7}, page); CodeOf(err) != Corrupt {
				t.Errorf("not refused: %v", err)
			}
		})
	}
}

func TestCancelledReadsEndAtOnce(t *testing.T) {
	_, c := serve(t, nil)
	if _, err := c.Map(t.Context()); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() {
		_, err := c.Pages(ctx, Position{LSN: 5000}, testRel, []pg.BlockNumber{7}, make([]byte, pg.BlockSize))
		done <- err
	}()
	cancel()
	if err := <-done; !errors.Is(err, context.Canceled) && CodeOf(err) != Unavailable {
		t.Errorf("a cancelled read: %v", err)
	}
}

func TestClusterStateGoesOverTheWire(t *testing.T) {
	f, _ := serve(t, nil)
	want, _ := f.State(t.Context(), Position{})
	w, err := stateToWire(want)
	if err != nil {
		t.Fatal(err)
	}
	got, err := stateFromWire(w)
	if err != nil {
		t.Fatal(err)
	}
	if got.LSN != want.LSN || got.Cluster.Control.Copy.NextXID != 99 || got.Cluster.Databases[0].DB != 5 || got.Cluster.RelMaps[0].Spc != 1664 ||
		got.Cluster.Tablespaces[0] != want.Cluster.Tablespaces[0] || got.Cluster.TwoPhase[0].XID != 4 || got.Cluster.Origins[0] != want.Cluster.Origins[0] ||
		got.Cluster.Files[0].Path != "postgresql.conf" || got.Cluster.Files[0].Mode != 0o600 || got.Damage[0] != want.Damage[0] || string(got.TimelineHistory) != "h" {
		t.Errorf("got %+v, want %+v", got, want)
	}
}
