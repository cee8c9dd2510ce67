package pageapi

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"reflect"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"google.golang.org/grpc"

	"everpage/cluster/placement"
	"everpage/pageapi/datadir"
	pb "everpage/pageapi/pagepb/everpage/v1"
	"everpage/wal/pg"
)

// newCluster is n nodes that each keep every shard, in different orders.
func newCluster(t *testing.T, n int) ([]*fakeNode, *placement.Map) {
	t.Helper()
	m := &placement.Map{Epoch: 5, SegmentBlocks: 16}
	var nodes []*fakeNode
	for i := range n {
		f := newFakeNode(t, nil)
		nodes = append(nodes, f)
		m.Nodes = append(m.Nodes, placement.Node{Name: fmt.Sprint("n", i), Address: f.address})
	}
	for shard := range 64 {
		var replicas []int
		for i := range n {
			replicas = append(replicas, (shard+i)%n)
		}
		m.Replicas = append(m.Replicas, replicas)
	}
	for _, f := range nodes {
		f.shardMap.Store(m)
	}
	return nodes, m
}

// readOne reads a block and verifies it.
func readOne(ctx context.Context, c *Client, at pg.LSN, block pg.BlockNumber) error {
	page := make([]byte, pg.BlockSize)
	if _, err := c.Pages(ctx, Position{LSN: at}, testRel, []pg.BlockNumber{block}, page); err != nil {
		return err
	}
	if got := binary.LittleEndian.Uint32(page[100:]); got != block {
		return fmt.Errorf("block %d came for %d", got, block)
	}
	return nil
}

// readers read blocks by turns until stop is called, which tells the longest read and the first error.
func readers(t *testing.T, c *Client, n int) (stop func() (longest time.Duration, reads int64)) {
	ctx, cancel := context.WithCancel(t.Context())
	var longest, reads atomic.Int64
	var wg sync.WaitGroup
	for i := range n {
		wg.Go(func() {
			for block := pg.BlockNumber(i); ctx.Err() == nil; block = (block + 17) % 1000 {
				began := time.Now()
				limited, done := context.WithTimeout(ctx, 10*time.Second)
				err := readOne(limited, c, 500, block)
				done()
				if ctx.Err() != nil {
					return
				}
				if err != nil {
					t.Errorf("block %d after %s: %v", block, time.Since(began), err)
					return
				}
				reads.Add(1)
				for took := int64(time.Since(began)); took > longest.Load(); {
					longest.Store(took)
				}
			}
		})
	}
	return func() (time.Duration, int64) {
		cancel()
		wg.Wait()
		return time.Duration(longest.Load()), reads.Load()
	}
}

// until waits for a condition.
func until(t *testing.T, what string, ok func() bool) {
	t.Helper()
	for end := time.Now().Add(20 * time.Second); !ok(); {
		if time.Now().After(end) {
			t.Fatalf("%s: not within 20 s", what)
		}
		<-time.After(2 * time.Millisecond)
	}
}

// gap is how long reads may pause where a node dies.
const gap = time.Second

func TestReadsGoOnWhenANodeIsKilled(t *testing.T) {
	nodes, _ := newCluster(t, 3)
	c := newTestClient(t, nodes[0].address)
	stop := readers(t, c, 4)
	until(t, "all nodes are read from", func() bool {
		return nodes[0].reads.Load() > 10 && nodes[1].reads.Load() > 10 && nodes[2].reads.Load() > 10
	})
	nodes[0].kill()
	before := nodes[1].reads.Load() + nodes[2].reads.Load()
	until(t, "the others are read from", func() bool { return nodes[1].reads.Load()+nodes[2].reads.Load() > before+500 })
	longest, reads := stop()
	t.Logf("%d reads, longest %s, %+v", reads, longest, c.Stats())
	if longest > gap {
		t.Errorf("a read took %s", longest)
	}
}

func TestReadsGoOnWhenANodeHangs(t *testing.T) {
	nodes, _ := newCluster(t, 3)
	c := newTestClient(t, nodes[0].address, nodes[1].address)
	stop := readers(t, c, 4)
	until(t, "all nodes are read from", func() bool {
		return nodes[0].reads.Load() > 10 && nodes[1].reads.Load() > 10 && nodes[2].reads.Load() > 10
	})
	nodes[0].stop()
	before := nodes[1].reads.Load() + nodes[2].reads.Load()
	until(t, "the others are read from", func() bool {
		return nodes[1].reads.Load()+nodes[2].reads.Load() > before+500 && c.Stats().Suspects > 0
	})
	if c := nodes[0].hung.Swap(nil); c != nil {
		close(*c)
	}
	nodes[1].stop()
	nodes[2].stop()
	back := nodes[0].reads.Load()
	until(t, "the node that is back is read from", func() bool { return nodes[0].reads.Load() > back+20 })
	longest, reads := stop()
	t.Logf("%d reads, longest %s, %+v", reads, longest, c.Stats())
	if longest > 3*gap { // the last step takes two nodes away at once
		t.Errorf("a read took %s", longest)
	}
}

// One hung node, and nothing but reads of what it is the preferred owner of.
func TestTheFirstReadAfterAHangIsQuick(t *testing.T) {
	nodes, m := newCluster(t, 2)
	c := newTestClient(t, nodes[0].address, nodes[1].address)
	for block := range pg.BlockNumber(20) {
		if err := readOne(t.Context(), c, 500, block*16); err != nil {
			t.Fatal(err)
		}
	}
	owner := slices.IndexFunc(nodes, func(n *fakeNode) bool { return n.address == m.Owners(pg.PageKey{RelFork: testRel})[0].Address })
	nodes[owner].stop()
	began := time.Now()
	if err := readOne(t.Context(), c, 500, 0); err != nil {
		t.Fatal(err)
	}
	if took := time.Since(began); took > gap {
		t.Errorf("the read took %s", took)
	}
}

// A listener that accepts connections and says nothing, as a machine whose processes are stuck.
func TestANodeThatAcceptsAndNeverAnswers(t *testing.T) {
	nodes, m := newCluster(t, 2)
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	var accepted sync.WaitGroup
	var mu sync.Mutex
	var open []net.Conn
	accepted.Go(func() {
		for {
			conn, err := l.Accept()
			if err != nil {
				return
			}
			mu.Lock()
			open = append(open, conn)
			mu.Unlock()
		}
	})
	t.Cleanup(func() {
		l.Close()
		accepted.Wait()
		for _, conn := range open {
			conn.Close()
		}
	})
	next := *m
	next.Epoch++
	next.Nodes = append(slices.Clone(m.Nodes), placement.Node{Name: "mute", Address: l.Addr().String()})
	next.Replicas = nil
	for shard := range m.Replicas {
		next.Replicas = append(next.Replicas, []int{2, shard % 2})
	}
	for _, n := range nodes {
		n.shardMap.Store(&next)
	}
	c := newTestClient(t, l.Addr().String(), nodes[0].address)
	for block := range pg.BlockNumber(100) {
		began := time.Now()
		if err := readOne(t.Context(), c, 500, block*10); err != nil {
			t.Fatal(err)
		}
		if took := time.Since(began); took > gap {
			t.Errorf("block %d took %s", block*10, took)
		}
	}
	ctx, cancel := context.WithTimeout(t.Context(), 5*time.Second)
	defer cancel()
	if _, _, err := c.RelSize(ctx, Position{}, testRel); err != nil {
		t.Error(err)
	}
}

// Slow answers are asked of another replica, but not more than the budget allows.
func TestSlowReadsAreHedgedWithinTheBudget(t *testing.T) {
	nodes, _ := newCluster(t, 2)
	c := newTestClient(t, nodes[0].address)
	for i := range pg.BlockNumber(200) {
		if err := readOne(t.Context(), c, 500, i); err != nil {
			t.Fatal(err)
		}
	}
	before, asked := c.Stats(), nodes[0].reads.Load()
	nodes[0].slow.Store(int64(60 * time.Millisecond))
	began := time.Now()
	for i := range pg.BlockNumber(200) {
		if err := readOne(t.Context(), c, 500, i); err != nil {
			t.Fatal(err)
		}
	}
	took := time.Since(began)
	nodes[0].slow.Store(0)
	after := c.Stats()
	t.Logf("200 reads with a slow node took %s, %+v", took, after)
	if after.Hedges == before.Hedges && nodes[0].reads.Load() > asked { // on a busy machine it may count as slow before it is
		t.Error("nothing was hedged")
	}
	if after.Hedges > after.Requests/20+hedgeSaved/100 {
		t.Errorf("%d hedges of %d requests", after.Hedges, after.Requests)
	}
	if took > 200*60*time.Millisecond/4 {
		t.Errorf("the slow node was not avoided: %s", took)
	}
}

func TestAllReplicasSlowAreNotAskedTwice(t *testing.T) {
	nodes, _ := newCluster(t, 2)
	c := newTestClient(t, nodes[0].address)
	for _, n := range nodes {
		n.slow.Store(int64(5 * time.Millisecond))
	}
	for i := range pg.BlockNumber(300) {
		if err := readOne(t.Context(), c, 500, i); err != nil {
			t.Fatal(err)
		}
	}
	if s := c.Stats(); s.Hedges > s.Requests/20+hedgeSaved/100 {
		t.Errorf("%+v: more hedges than the budget allows", s)
	}
}

// A replica that is behind is not waited for while another has the LSN.
func TestAReplicaThatIsBehindIsPassedBy(t *testing.T) {
	nodes, _ := newCluster(t, 3)
	nodes[0].readable.Store(400)
	nodes[1].readable.Store(400)
	c := newTestClient(t, nodes[0].address)
	for block := range pg.BlockNumber(60) {
		began := time.Now()
		if err := readOne(t.Context(), c, 900, block*16); err != nil {
			t.Fatal(err)
		}
		if took := time.Since(began); took > gap {
			t.Errorf("block %d took %s", block*16, took)
		}
	}
	if n := nodes[0].reads.Load() + nodes[1].reads.Load(); n != 0 {
		t.Errorf("%d reads of LSN 900 were made by nodes that are at 400", n)
	}
	// What nobody has is waited for as long as the request allows, and the error says why.
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Second)
	defer cancel()
	err := readOne(ctx, c, 5000, 1)
	if CodeOf(err) != Unavailable || !strings.Contains(err.Error(), "the primary sleeps") {
		t.Errorf("an LSN of the future: %v", err)
	}
	// And it is answered once somebody has it.
	done := make(chan error, 1)
	go func() {
		ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
		defer cancel()
		done <- readOne(ctx, c, 2000, 1)
	}()
	nodes[1].readable.Store(3000)
	if err := <-done; err != nil {
		t.Error(err)
	}
}

// A node that has not heard of a failover yet means another branch by main: neither its newest LSN nor what it knows of transactions counts, however far it is.
func TestMainIsTheNewestBranch(t *testing.T) {
	nodes, _ := newCluster(t, 3)
	for i, n := range nodes {
		n.readable.Store(700)
		n.main.Store(2)
		if i == 1 {
			n.readable.Store(900)
			n.main.Store(1)
		}
	}
	xid := pg.TransactionID(800)
	for _, seed := range nodes {
		c := newTestClient(t, seed.address)
		if r, err := c.Resolve(t.Context(), Target{}); err != nil || r.LSN != 700 || r.Branch != 2 {
			t.Errorf("the newest LSN is %+v: %v", r, err)
		}
		if r, err := c.Resolve(t.Context(), Target{XID: &xid}); CodeOf(err) != NotFound {
			t.Errorf("a transaction of the old branch: %+v %v", r, err)
		}
		if at, err := c.settle(t.Context(), Position{}); err != nil || at != (Position{Branch: 2, LSN: 700}) {
			t.Errorf("newest is %+v: %v", at, err)
		}
	}
}

// So it is with main at an LSN: the old timeline has other content there. A node that has not heard of a failover waits for it, one that knows better than the
// client refuses, and the client asks anew.
func TestMainAtAnLSNIsOfTheNewestBranch(t *testing.T) {
	nodes, _ := newCluster(t, 3)
	for _, n := range nodes {
		n.main.Store(1)
	}
	c := newTestClient(t, nodes[1].address)
	read := func(c *Client, want uint32) {
		t.Helper()
		page := make([]byte, pg.BlockSize)
		for block := pg.BlockNumber(0); block < 96; block += 16 { // owners of all orders
			if _, err := c.Pages(t.Context(), Position{LSN: 500}, testRel, []pg.BlockNumber{block}, page); err != nil {
				t.Fatal(err)
			}
			if got := binary.LittleEndian.Uint32(page[300:]); got != want {
				t.Fatalf("block %d is of branch %d, main is %d", block, got, want)
			}
		}
		st, err := c.State(t.Context(), Position{LSN: 500})
		if err != nil || st.Branch != want {
			t.Fatalf("the state is of branch %d: %v; want %d", st.Branch, err, want)
		}
		if s, err := c.Snapshot(t.Context(), Position{LSN: 500}); err != nil || s.pos.Branch != want || s.pos.Main {
			t.Fatalf("the snapshot is of %+v: %v; want branch %d", s.pos, err, want)
		}
	}
	read(c, 1)
	for i, n := range nodes {
		if i != 1 {
			n.main.Store(2)
		}
	}
	// One that has asked lately: whoever knows better tells it. The node that does not might still answer as before, within mainFresh.
	page := make([]byte, pg.BlockSize)
	until(t, "a node tells that main has moved", func() bool {
		for block := pg.BlockNumber(0); block < 96; block += 16 {
			if _, err := c.Pages(t.Context(), Position{LSN: 500}, testRel, []pg.BlockNumber{block}, page); err != nil {
				t.Fatal(err)
			}
		}
		return c.main.number.Load() == 2
	})
	// From now on the node that has not heard of it answers nothing of main.
	before := nodes[1].reads.Load()
	read(c, 2)
	if n := nodes[1].reads.Load(); n != before {
		t.Errorf("the node that has not heard of the failover answered %d reads", n-before)
	}
	read(newTestClient(t, nodes[1].address), 2) // that node is the first one that it asks
	nodes[1].main.Store(2)
	until(t, "the node answers again", func() bool { read(c, 2); return nodes[1].reads.Load() > before })
}

// Each node knows the damage of its own shards only: a snapshot knows all of them.
func TestDamageOfAllNodesIsTold(t *testing.T) {
	nodes, _ := newCluster(t, 3)
	for i, n := range nodes {
		n.damage.Store(uint32(10 + i))
	}
	c := newTestClient(t, nodes[1].address)
	s, err := c.Snapshot(t.Context(), Position{LSN: 1000})
	if err != nil {
		t.Fatal(err)
	}
	var told []string
	if err := s.Damaged(t.Context(), 1000, func(d datadir.Damage) error { told = append(told, d.Err.Error()); return nil }); err != nil {
		t.Fatal(err)
	}
	for _, block := range []string{"block 10:", "block 11:", "block 12:", "block 3:"} {
		if n := strings.Count(strings.Join(told, "\n"), block); n != 1 {
			t.Errorf("%s is told %d times: %q", block, n, told)
		}
	}
}

// What was seen once is seen again, whichever node is asked: the newest is what the furthest node has, and a transaction is looked up there.
func TestTheNewestIsTheFurthestNodes(t *testing.T) {
	nodes, m := newCluster(t, 3)
	nodes[0].readable.Store(400)
	nodes[1].readable.Store(700)
	nodes[2].readable.Store(400)
	page := make([]byte, pg.BlockSize)
	xid, late := pg.TransactionID(650), pg.TransactionID(800)
	look := func(c *Client, want pg.LSN) {
		t.Helper()
		for block := range pg.BlockNumber(12) {
			if lsn, err := c.Pages(t.Context(), Position{}, testRel, []pg.BlockNumber{block * 16}, page); lsn != want || err != nil {
				t.Fatalf("the newest version of block %d is at %s: %v; want %s", block*16, lsn, err, want)
			}
		}
		if _, lsn, err := c.RelSize(t.Context(), Position{}, testRel); lsn != want || err != nil {
			t.Errorf("the newest size is at %s: %v; want %s", lsn, err, want)
		}
		if r, err := c.Resolve(t.Context(), Target{}); err != nil || r.LSN != want {
			t.Errorf("the newest LSN is %+v: %v; want %s", r, err, want)
		}
	}
	for _, seed := range nodes {
		c := newTestClient(t, seed.address)
		look(c, 700)
		if r, err := c.Resolve(t.Context(), Target{XID: &xid}); err != nil || r.LSN != 650 {
			t.Errorf("transaction 650: %+v %v", r, err)
		}
		if _, err := c.Resolve(t.Context(), Target{XID: &late}); CodeOf(err) != NotFound {
			t.Errorf("transaction 800: %v", err)
		}
	}
	// One that hangs is not waited for long, and is named where it might know more.
	nodes[1].stop()
	c := newTestClient(t, nodes[0].address)
	began := time.Now()
	_, err := c.Resolve(t.Context(), Target{XID: &xid})
	if CodeOf(err) != NotFound || !strings.Contains(err.Error(), "1 of the nodes did not say") {
		t.Errorf("transaction 650, which only the hung node knows: %v", err)
	}
	if took := time.Since(began); took > gap {
		t.Errorf("it took %s", took)
	}
	// An owner that is behind is waited for.
	nodes[0].readable.Store(900)
	slow := slices.IndexFunc(nodes, func(n *fakeNode) bool { return n.address == m.Nodes[2].Address })
	only := *m
	only.Epoch++
	only.Replicas = slices.Repeat([][]int{{slow}}, len(m.Replicas))
	for _, n := range nodes {
		n.shardMap.Store(&only)
	}
	c = newTestClient(t, nodes[0].address)
	done := make(chan error, 1)
	go func() {
		lsn, err := c.Pages(t.Context(), Position{}, testRel, []pg.BlockNumber{1}, page)
		if err == nil && lsn != 900 {
			err = fmt.Errorf("answered at %s", lsn)
		}
		done <- err
	}()
	until(t, "the client has settled on the newest LSN", func() bool {
		c.mu.Lock()
		n := c.nodes[nodes[0].address]
		c.mu.Unlock()
		if n == nil {
			return false
		}
		n.mu.Lock()
		defer n.mu.Unlock()
		return n.readable[0] == 900
	})
	nodes[2].readable.Store(900)
	if err := <-done; err != nil {
		t.Error(err)
	}
}

// A node that keeps nothing and knows no better must not be asked for ever.
func TestWrongOwnersAreBounded(t *testing.T) {
	nodes, _ := newCluster(t, 3)
	for _, n := range nodes {
		n.strange.Store(true)
	}
	c := newTestClient(t, nodes[0].address)
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	if err := readOne(ctx, c, 500, 1); CodeOf(err) != WrongOwner {
		t.Errorf("nobody keeps the page: %v", err)
	}
	sum := nodes[0].reads.Load() + nodes[1].reads.Load() + nodes[2].reads.Load()
	if sum > 3*(maxFollows+1)+6 {
		t.Errorf("%d reads for one that nobody answers", sum)
	}
	// One of three that keeps it is found.
	nodes[2].strange.Store(false)
	if err := readOne(ctx, c, 500, 1); err != nil {
		t.Error(err)
	}
}

// A map from the past is ignored, one from the future is adopted, wherever it comes from.
func TestMapsOfPastAndFuture(t *testing.T) {
	nodes, m := newCluster(t, 2)
	c := newTestClient(t, nodes[0].address)
	if err := readOne(t.Context(), c, 500, 1); err != nil {
		t.Fatal(err)
	}
	past := *m
	past.Epoch = 1
	past.Nodes = []placement.Node{{Name: "gone", Address: "127.0.0.1:1"}, {Name: "gone too", Address: "127.0.0.1:1"}}
	nodes[0].shardMap.Store(&past)
	nodes[0].strange.Store(true)
	if err := readOne(t.Context(), c, 500, 1); err != nil {
		t.Errorf("with a map from the past: %v", err)
	}
	if got, _ := c.Map(t.Context()); got.Epoch != 5 {
		t.Errorf("the client took the map of epoch %d for that of epoch 5", got.Epoch)
	}
	future := *m
	future.Epoch = 9
	future.Replicas = nil
	for range 64 {
		future.Replicas = append(future.Replicas, []int{1})
	}
	nodes[0].shardMap.Store(&future)
	for block := range pg.BlockNumber(60) {
		if err := readOne(t.Context(), c, 500, block*16); err != nil {
			t.Fatal(err)
		}
	}
	if got, _ := c.Map(t.Context()); got.Epoch != 9 {
		t.Errorf("the client knows the map of epoch %d, want 9", got.Epoch)
	}
	broken := future
	broken.Epoch = 10
	broken.Replicas = [][]int{{7}}
	for _, n := range nodes {
		n.shardMap.Store(&broken)
	}
	if _, err := c.newerMap(t.Context()); CodeOf(err) != Internal {
		t.Errorf("a map that names nodes that don't exist: %v", err)
	}
	if err := readOne(t.Context(), c, 500, 1); err != nil {
		t.Error(err)
	}
}

// Closing the client ends what is under way.
func TestCloseEndsRequests(t *testing.T) {
	nodes, _ := newCluster(t, 2)
	c := newTestClient(t, nodes[0].address)
	done := make(chan error, 1)
	go func() { done <- readOne(t.Context(), c, 5000, 1) }() // an LSN that nobody has
	until(t, "the read is under way", func() bool { return c.Stats().Requests > 0 })
	if err := c.Close(); err != nil {
		t.Error(err)
	}
	if err := <-done; CodeOf(err) != Unavailable {
		t.Errorf("a read under way when the client was closed: %v", err)
	}
}

// A chunk with replicas of its own is read from those, the rest of its shard from the shard's.
func TestChunksWithReplicasOfTheirOwn(t *testing.T) {
	nodes, m := newCluster(t, 3)
	next := *m
	next.Epoch++
	next.Replicas = nil
	for range m.Replicas {
		next.Replicas = append(next.Replicas, []int{0})
	}
	own := pg.PageKey{RelFork: testRel, Block: 40}
	slru := pg.SLRUPage(pg.Xact, 5)
	for _, key := range []pg.PageKey{slru, own} {
		next.Chunks = append(next.Chunks, placement.ChunkReplicas{Chunk: placement.ChunkOf(key, 16), Replicas: []int{2, 1}})
	}
	slices.SortFunc(next.Chunks, func(a, b placement.ChunkReplicas) int { return a.Chunk.Compare(b.Chunk) })
	for _, n := range nodes {
		n.shardMap.Store(&next)
	}
	c := newTestClient(t, nodes[1].address)
	blocks := make([]pg.BlockNumber, 100)
	for i := range blocks {
		blocks[i] = pg.BlockNumber(i)
	}
	if _, err := c.Pages(t.Context(), Position{LSN: 500}, testRel, blocks, make([]byte, len(blocks)*pg.BlockSize)); err != nil {
		t.Fatal(err)
	}
	if a, b, d := nodes[0].reads.Load(), nodes[1].reads.Load(), nodes[2].reads.Load(); a < 84 || b+d < 16 {
		t.Errorf("%d reads of the shards' node, %d and %d of the chunk's", a, b, d)
	}
	got, _ := c.Map(t.Context())
	if !reflect.DeepEqual(got.Chunks, next.Chunks) {
		t.Errorf("the map that arrived has %v, want %v", got.Chunks, next.Chunks)
	}
}

// Damage on the way from one replica is noticed, and another one asked.
func TestADamagedAnswerIsReplacedByAnotherReplicas(t *testing.T) {
	bad := newFakeNode(t, func(a *pagesAnswer) {
		if a.pages != nil {
			a.pages.ReadOnlyData()[5000] ^= 4
		}
	})
	good := newFakeNode(t, nil)
	m := placement.Single(placement.Node{Name: "bad", Address: bad.address}, 64, 16)
	m.Nodes = append(m.Nodes, placement.Node{Name: "good", Address: good.address})
	for i := range m.Replicas {
		m.Replicas[i] = []int{0, 1}
	}
	bad.shardMap.Store(m)
	good.shardMap.Store(m)
	c := newTestClient(t, bad.address)
	for block := range pg.BlockNumber(100) {
		if err := readOne(t.Context(), c, 500, block); err != nil {
			t.Fatal(err)
		}
	}
	if bad.reads.Load() == 0 {
		t.Error("the damaged replica was never asked")
	}
	good.kill()
	ctx, cancel := context.WithTimeout(t.Context(), 5*time.Second)
	defer cancel()
	if err := readOne(ctx, c, 500, 1); CodeOf(err) != Corrupt {
		t.Errorf("with only the damaged replica left: %v", err)
	}
}

func TestABatchHasAnOutcomeForEachRequest(t *testing.T) {
	nodes, _ := newCluster(t, 3)
	c := newTestClient(t, nodes[0].address)
	batch := make([]Request, 40)
	for i := range batch {
		b := &batch[i]
		b.At, b.Rel, b.Dst = Position{LSN: 500}, testRel, make([]byte, 3*pg.BlockSize)
		first := pg.BlockNumber(i * 25)
		b.Blocks = []pg.BlockNumber{first + 20, first, first + 7}
	}
	batch[7].Blocks[1] = 4000
	batch[9].Rel.Rel++
	batch[11].Dst = batch[11].Dst[:100]
	c.GetPages(t.Context(), batch)
	for i, b := range batch {
		want := map[int]Code{7: NotFound, 9: NotFound, 11: Invalid}[i]
		if CodeOf(b.Err) != want {
			t.Errorf("request %d: %v, want code %s", i, b.Err, want)
		}
		for j, block := range b.Blocks {
			if b.Err == nil && (binary.LittleEndian.Uint32(b.Dst[j*pg.BlockSize+100:]) != block || b.LSN != 500) {
				t.Errorf("request %d, page %d is not block %d at 500", i, j, block)
			}
		}
	}
}

// A node that dies in the middle of a listing is replaced by another, and every relation is told once.
func TestListingsAreWholeOrAnError(t *testing.T) {
	nodes, _ := newCluster(t, 3)
	c := newTestClient(t, nodes[0].address)
	if _, err := c.Map(t.Context()); err != nil {
		t.Fatal(err)
	}
	seen := map[pg.RelFork]pg.BlockNumber{}
	killed := false
	list, err := c.anyNodes(Position{})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := c.Relations(t.Context(), Position{}, func(rel pg.RelFork, blocks pg.BlockNumber) error {
		if _, again := seen[rel]; again {
			return fmt.Errorf("%s is told twice", rel)
		}
		seen[rel] = blocks
		if len(seen) == 1500 && !killed {
			killed = true
			for _, n := range nodes {
				if n.address == list[0].address {
					n.kill()
				}
			}
		}
		return nil
	}); err != nil || len(seen) != 5000 {
		t.Errorf("%d of 5000 relations, %v", len(seen), err)
	}
	stop := errors.New("stop")
	if _, err := c.Relations(t.Context(), Position{}, func(pg.RelFork, pg.BlockNumber) error { return stop }); !errors.Is(err, stop) {
		t.Errorf("the reader's error: %v", err)
	}
	n := 0
	lsn, err := c.History(t.Context(), Position{LSN: 1000}, pg.PageKey{RelFork: testRel}, 0, func(v Version) error {
		if n++; v.LSN != pg.LSN(1001-n) {
			return fmt.Errorf("version %d is %s", n, v.LSN)
		}
		return nil
	})
	if err != nil || n != 1000 || lsn != 1000 {
		t.Errorf("%d versions at %s, %v", n, lsn, err)
	}
	n = 0
	if _, err := c.History(t.Context(), Position{LSN: 1000}, pg.PageKey{RelFork: testRel}, 10, func(Version) error { n++; return nil }); err != nil || n != 10 {
		t.Errorf("%d versions with a limit of 10, %v", n, err)
	}
}

// changed lets a test change what other answers say.
type changedStream struct {
	grpc.ServerStream
	n      int
	change func(n int, m any) (drop bool)
}

func (s *changedStream) SendMsg(m any) error {
	s.n++
	if s.change(s.n, m) {
		return nil
	}
	return s.ServerStream.SendMsg(m)
}

func TestOtherAnswersAreVerifiedToo(t *testing.T) {
	var unaryChange func(any)
	var streamChange func(int, any) bool
	f := &fakePages{}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	s := grpc.NewServer(append(ServerOptions(),
		grpc.UnaryInterceptor(func(ctx context.Context, req any, _ *grpc.UnaryServerInfo, handler grpc.UnaryHandler) (any, error) {
			resp, err := handler(ctx, req)
			if unaryChange != nil && err == nil {
				unaryChange(resp)
			}
			return resp, err
		}),
		grpc.StreamInterceptor(func(srv any, ss grpc.ServerStream, _ *grpc.StreamServerInfo, handler grpc.StreamHandler) error {
			if streamChange == nil {
				return handler(srv, ss)
			}
			return handler(srv, &changedStream{ServerStream: ss, change: streamChange})
		}))...)
	f.shardMap.Store(placement.Single(placement.Node{Name: "n", Address: l.Addr().String()}, 64, 16))
	pb.RegisterPageServiceServer(s, NewServer(f))
	var served sync.WaitGroup
	served.Go(func() { s.Serve(l) })
	t.Cleanup(func() { s.Stop(); served.Wait() })
	c := newTestClient(t, l.Addr().String())
	if n, lsn, err := c.RelSize(t.Context(), Position{}, testRel); n != 1000 || lsn != 1000 || err != nil {
		t.Fatalf("%d blocks at %s, %v", n, lsn, err)
	}
	if _, err := c.State(t.Context(), Position{}); err != nil {
		t.Fatal(err)
	}
	unaryChange = func(m any) {
		switch m := m.(type) {
		case *pb.GetRelSizeResponse:
			m.Blocks--
		case *pb.GetClusterStateResponse:
			m.Tablespaces[0].Location = "/y"
		case *pb.GetShardMapResponse:
			m.Epoch++
		}
	}
	if _, _, err := c.RelSize(t.Context(), Position{}, testRel); CodeOf(err) != Corrupt {
		t.Errorf("a size that was changed: %v", err)
	}
	if _, err := c.State(t.Context(), Position{}); CodeOf(err) != Corrupt {
		t.Errorf("a state that was changed: %v", err)
	}
	if _, err := c.newerMap(t.Context()); CodeOf(err) != Corrupt {
		t.Errorf("a map that was changed: %v", err)
	}
	for name, change := range map[string]func(int, any) bool{
		"a changed part": func(n int, m any) bool {
			r := m.(*pb.ListRelationsResponse)
			r.Relations = r.Relations[:len(r.Relations)/2]
			return false
		},
		"a part left out":     func(n int, _ any) bool { return n == 2 },
		"the end left out":    func(_ int, m any) bool { return m.(*pb.ListRelationsResponse).Last },
		"everything left out": func(int, any) bool { return true },
	} {
		streamChange = change
		if _, err := c.Relations(t.Context(), Position{}, func(pg.RelFork, pg.BlockNumber) error { return nil }); CodeOf(err) != Corrupt {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// What is under way at one server is bounded; the client waits and tries again.
func TestAServerThatHasEnoughRefuses(t *testing.T) {
	f := &fakePages{}
	f.slow.Store(int64(20 * time.Millisecond))
	server := NewServer(f)
	server.pool.limit = 2 * pg.BlockSize
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	s := grpc.NewServer(ServerOptions()...)
	pb.RegisterPageServiceServer(s, server)
	var served sync.WaitGroup
	served.Go(func() { s.Serve(l) })
	t.Cleanup(func() { s.Stop(); served.Wait() })
	f.shardMap.Store(placement.Single(placement.Node{Name: "n", Address: l.Addr().String()}, 64, 16))
	c := newTestClient(t, l.Addr().String())
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	var wg sync.WaitGroup
	for i := range pg.BlockNumber(12) {
		wg.Go(func() {
			if err := readOne(ctx, c, 500, i); err != nil {
				t.Errorf("block %d: %v", i, err)
			}
		})
	}
	wg.Wait()
	_, err = c.Pages(ctx, Position{LSN: 500}, testRel, []pg.BlockNumber{1}, make([]byte, pg.BlockSize))
	if err != nil {
		t.Error(err)
	}
	short, cancelShort := context.WithTimeout(t.Context(), 300*time.Millisecond)
	defer cancelShort()
	if _, err = c.Pages(short, Position{LSN: 500}, testRel, []pg.BlockNumber{1, 2, 3}, make([]byte, 3*pg.BlockSize)); CodeOf(err) != Exhausted {
		t.Errorf("more pages than the server allows: %v", err)
	}
	until(t, "buffers are given back", func() bool { return server.pool.bytes.Load() == 0 })
}

type fakeLeases struct{ got Lease }

func (f *fakeLeases) Lease(_ context.Context, l Lease, d time.Duration) (Lease, error) {
	f.got = l
	l.ID, l.Expires = 77, time.Unix(1_900_000_000, 0).Add(d)
	return l, nil
}

func TestLeases(t *testing.T) {
	f := &fakePages{}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	leases := &fakeLeases{}
	s := grpc.NewServer(ServerOptions()...)
	pb.RegisterPageServiceServer(s, NewServer(f).WithLeases(leases))
	var served sync.WaitGroup
	served.Go(func() { s.Serve(l) })
	t.Cleanup(func() { s.Stop(); served.Wait() })
	f.shardMap.Store(placement.Single(placement.Node{Name: "n", Address: l.Addr().String()}, 64, 16))
	c := newTestClient(t, l.Addr().String())
	got, err := c.Lease(t.Context(), Lease{Pos: Position{Branch: 2, LSN: 300}, Holder: "clone x"}, time.Minute)
	if err != nil || got.ID != 77 || got.Expires.Unix() != 1_900_000_060 || leases.got.Pos != (Position{Branch: 2, LSN: 300}) || leases.got.Holder != "clone x" {
		t.Errorf("%+v, %v; asked for %+v", got, err, leases.got)
	}
	if _, err := c.Lease(t.Context(), Lease{}, 0); CodeOf(err) != Invalid {
		t.Errorf("ending no lease: %v", err)
	}
	_, plain := serve(t, nil)
	if _, err := plain.Lease(t.Context(), Lease{Pos: Position{Branch: 2, LSN: 300}}, time.Minute); CodeOf(err) != Invalid {
		t.Errorf("a node without leases: %v", err)
	}
}
