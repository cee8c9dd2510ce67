package killtest

import (
	"bytes"
	"context"
	"encoding/binary"
	"fmt"
	"math/rand/v2"
	"strconv"
	"strings"
	"sync"
	"time"

	"everpage/deploy/pgtest"
	"everpage/pageapi"
	"everpage/wal/pg"
)

// prepare makes the tables of the load.
func prepare(ctx context.Context, s *pgtest.Server) error {
	if _, err := s.Pgbench(ctx, "-i", "-q", "-s", "1"); err != nil {
		return err
	}
	_, err := s.SQL(ctx, "postgres",
		"create table acks (id int, mark text)",
		"create table big (id serial primary key, v text)",
		"alter table big alter v set storage external",
		"create table rows (id int primary key, v text, n int) with (fillfactor = 70)",
		"insert into rows select i, repeat('x', 20), 0 from generate_series(1, 2000) i",
		"create index on rows (n)",
		"create sequence seq",
		"create unlogged table fleeting (i int)")
	return err
}

// statements are what the sessions of the load draw from, beside pgbench. $n is a number that no other statement has, from 1 on.
var statements = []string{
	"update rows set n = n + 1, v = md5('$n') where id % 50 = $n % 50",
	"delete from rows where id % 40 = $n % 40; insert into rows select i, 'again', $n from generate_series(1, 2000) i on conflict (id) do nothing",
	// Records that cross pages: a killed primary leaves some of them unfinished.
	"insert into big (v) select string_agg(md5(($n * i)::text), '') from generate_series(1, 1500) i",
	"delete from big where id < (select max(id) - 10 from big)",
	"create table t$n as select i, md5(i::text) v from generate_series(1, 300) i; create index on t$n (v); drop table t$n",
	"create table cut$n as select i from generate_series(1, 3000) i; delete from cut$n where i > 100; vacuum cut$n; drop table cut$n",
	"begin; insert into rows values (10000 + $n, 'never', 0); savepoint a; update rows set v = 'sub' where id = 10000 + $n; rollback to a; update rows set n = 7 where id = 5; rollback",
	"begin; update rows set v = 'two' where id = $n % 2000; prepare transaction 'p$n'; commit prepared 'p$n'",
	"begin; select * from rows where id = $n % 2000 for share; savepoint s; update rows set n = n where id = $n % 2000; commit",
	"select nextval('seq') from generate_series(1, 40)",
	"truncate fleeting; insert into fleeting select generate_series(1, 1000)",
	"vacuum rows",
	"select pg_logical_emit_message(false, 'killtest', repeat('m', 30000))",
}

// costly are drawn seldom: each makes a lot of WAL, of pages for the first time after a checkpoint and of the rest of a segment.
var costly = []string{"reindex table rows", "checkpoint", "select pg_switch_wal()"}

const costlyOnce = 40 // in so many draws

// load is the work that goes on while servers are killed. All of it shrugs off errors: they are what killing makes.
type load struct {
	cancel context.CancelFunc
	done   sync.WaitGroup

	mu    sync.Mutex
	acked []int // ids whose commit returned
}

func startLoad(ctx context.Context, s *pgtest.Server, seed uint64) *load {
	ctx, cancel := context.WithCancel(ctx)
	l := &load{cancel: cancel}
	l.done.Go(func() {
		for ctx.Err() == nil {
			_, _ = s.Pgbench(ctx, "-n", "-c", "2", "-T", "600", "-R", "60")
			breathe(ctx)
		}
	})
	var numbers sync.Mutex
	number := 0
	for i := range uint64(2) {
		random := rand.New(rand.NewPCG(seed, i))
		l.done.Go(func() {
			l.session(ctx, s, func() string {
				numbers.Lock()
				number++
				n := number
				numbers.Unlock()
				list := statements
				if random.IntN(costlyOnce) == 0 {
					list = costly
				}
				return strings.ReplaceAll(list[random.IntN(len(list))], "$n", strconv.Itoa(n))
			})
		})
	}
	l.done.Go(func() { l.acknowledge(ctx, s) })
	return l
}

func (l *load) stop() {
	l.cancel()
	l.done.Wait()
}

// breathe leaves a server that is away, or two cores, a moment.
func breathe(ctx context.Context) {
	select {
	case <-ctx.Done():
	case <-time.After(50 * time.Millisecond):
	}
}

// session runs statements on one connection after the other.
func (l *load) session(ctx context.Context, s *pgtest.Server, next func() string) {
	for ctx.Err() == nil {
		conn, err := s.Conn(ctx, "postgres")
		for err == nil && ctx.Err() == nil {
			for _, statement := range strings.Split(next(), "; ") {
				if _, err = conn.Exec(ctx, statement); err != nil {
					break
				}
			}
			breathe(ctx)
		}
		if conn != nil {
			conn.Close(context.WithoutCancel(ctx))
		}
		breathe(ctx)
	}
}

// marks tell the rows of acks in raw pages. Each is of a fixed length and holds its number twice.
func mark(id int) []byte { return fmt.Appendf(nil, "<ack %08d of %08d ack>", id, id) }

// acknowledge commits rows that wait for the node, one at a time, and notes those whose commit returned.
func (l *load) acknowledge(ctx context.Context, s *pgtest.Server) {
	id := 0
	for ctx.Err() == nil {
		conn, err := s.Conn(ctx, "postgres")
		if err == nil {
			_, err = conn.Exec(ctx, "set synchronous_commit = on")
		}
		for err == nil && ctx.Err() == nil {
			id++
			if _, err = conn.Exec(ctx, fmt.Sprintf("insert into acks values (%d, '%s')", id, mark(id))); err == nil {
				l.mu.Lock()
				l.acked = append(l.acked, id)
				l.mu.Unlock()
			}
			breathe(ctx)
		}
		if conn != nil {
			conn.Close(context.WithoutCancel(ctx))
		}
		breathe(ctx)
	}
}

// acknowledged looks for every commit that returned, in the pages that the node serves and in its commit log. It waits until they are there: the WAL that the
// node has on disk is ingested in its own time.
func (r *run) acknowledged(ctx context.Context) error {
	r.load.mu.Lock()
	want := append([]int{}, r.load.acked...)
	r.load.mu.Unlock()
	c, err := pageapi.NewClient([]string{r.node.Address()})
	if err != nil {
		return err
	}
	defer c.Close()
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	for {
		missing, err := r.missing(ctx, c, want)
		if err == nil && missing == 0 {
			r.report.Commits = len(want)
			r.o.Logf("%d acknowledged commits are there", len(want))
			return nil
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("%d of %d acknowledged commits are missing, error %v; log:\n%s", missing, len(want), err, r.node.Log())
		case <-time.After(100 * time.Millisecond):
		}
	}
}

// missing counts the ids without a committed row.
func (r *run) missing(ctx context.Context, c *pageapi.Client, want []int) (int, error) {
	fork := pg.RelFork{RelFileLocator: r.acks, Fork: pg.MainFork}
	blocks, at, err := c.RelSize(ctx, pageapi.Position{}, fork)
	if err != nil {
		return 0, err
	}
	page := make(pg.Page, pg.BlockSize)
	xids := map[int]pg.TransactionID{}
	for b := range blocks {
		if _, err := c.Pages(ctx, pageapi.Position{LSN: at}, fork, []pg.BlockNumber{b}, page); err != nil {
			return 0, err
		}
		for i := range page.ItemCount() {
			item := page.Item(pg.OffsetNumber(i + 1))
			if item.Length() == 0 {
				continue
			}
			tuple := page[item.Offset() : item.Offset()+item.Length()]
			var id, again int
			if from := bytes.Index(tuple, []byte("<ack ")); from >= 0 {
				if _, err := fmt.Sscanf(string(tuple[from:]), "<ack %d of %d ack>", &id, &again); err == nil && id == again {
					xids[id] = binary.LittleEndian.Uint32(tuple) // t_xmin
				}
			}
		}
	}
	segments := map[uint32][]byte{}
	missing := 0
	for _, id := range want {
		xid, ok := xids[id]
		if ok {
			ok, err = committed(ctx, c, at, segments, xid)
			if err != nil {
				return 0, err
			}
		}
		if !ok {
			missing++
		}
	}
	return missing, nil
}

// committed asks the commit log at an LSN (TransactionIdGetStatus).
func committed(ctx context.Context, c *pageapi.Client, at pg.LSN, segments map[uint32][]byte, xid pg.TransactionID) (bool, error) {
	const perByte, committedBits = 4, 1
	page := xid / pg.XactsPerPage
	number := page / pg.SLRUPagesPerSegment
	segment := segments[number]
	if segment == nil {
		var err error
		if segment, err = c.SLRUSegment(ctx, pageapi.Position{LSN: at}, pg.Xact, number); err != nil {
			return false, err
		}
		segments[number] = segment
	}
	in := page%pg.SLRUPagesPerSegment*pg.BlockSize + xid%pg.XactsPerPage/perByte
	return int(in) < len(segment) && segment[in]>>(2*(xid%perByte))&3 == committedBits, nil
}
