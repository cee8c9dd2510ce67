package losstest

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"sync"
	"time"

	"everpage/deploy/pgtest"
	"everpage/deploy/restoretest"
	"everpage/wal/pg"
)

// load is what clients do, and what they saw.
type load struct {
	cancel context.CancelFunc
	done   sync.WaitGroup

	mu   sync.Mutex
	seen []commit
}

// commit is a row whose commit returned to the client. Its commit record lies between two LSNs that the client asked for, before and after.
type commit struct {
	id            int
	before, after pg.LSN
}

func startLoad(ctx context.Context, s *pgtest.Server) (*load, error) {
	if _, err := s.SQL(ctx, "bench", "create table seen (id int primary key)"); err != nil {
		return nil, err
	}
	ctx, cancel := context.WithCancel(ctx)
	l := &load{cancel: cancel}
	l.done.Go(func() {
		for ctx.Err() == nil {
			_, _ = s.Pgbench(ctx, "-n", "-c", "2", "-T", "600", "-R", "80", "bench")
			breathe(ctx)
		}
	})
	for i := range 2 {
		l.done.Go(func() { l.client(ctx, s, i) })
	}
	return l, nil
}

func (l *load) stop() {
	l.cancel()
	l.done.Wait()
}

func breathe(ctx context.Context) {
	select {
	case <-ctx.Done():
	case <-time.After(20 * time.Millisecond):
	}
}

// client commits one row after the other and notes those whose commit returned.
func (l *load) client(ctx context.Context, s *pgtest.Server, number int) {
	const insertLSN = "select pg_current_wal_insert_lsn()::text"
	id := number * 1_000_000
	for ctx.Err() == nil {
		conn, err := s.Conn(ctx, "bench")
		for err == nil && ctx.Err() == nil {
			id++
			var before, after string
			if err = conn.QueryRow(ctx, insertLSN).Scan(&before); err != nil {
				break
			}
			if _, err = conn.Exec(ctx, "insert into seen values ($1)", id); err != nil {
				break
			}
			if err = conn.QueryRow(ctx, insertLSN).Scan(&after); err != nil {
				break
			}
			c := commit{id: id}
			if c.before, err = pg.ParseLSN(before); err != nil {
				break
			}
			if c.after, err = pg.ParseLSN(after); err != nil {
				break
			}
			l.mu.Lock()
			l.seen = append(l.seen, c)
			l.mu.Unlock()
			breathe(ctx)
		}
		if conn != nil {
			conn.Close(context.WithoutCancel(ctx))
		}
		breathe(ctx)
	}
}

// commits restores at the end of what the primary has written and looks for every commit that a client saw by now.
func (x *run) commits(ctx context.Context) error {
	end, err := x.caughtUp(ctx)
	if err != nil {
		return err
	}
	return x.commitsAt(ctx, end)
}

// commitsAt restores at an LSN and looks for every commit that a client saw: it is there, if it was returned by then, and is not, if it began later.
func (x *run) commitsAt(ctx context.Context, at pg.LSN) (err error) {
	x.load.mu.Lock()
	seen := append([]commit{}, x.load.seen...)
	x.load.mu.Unlock()
	dir := filepath.Join(x.o.Dir, "commits")
	data := filepath.Join(dir, "data")
	if r := x.cluster.Nodes[0].Run(ctx, "restore", data, "--lsn", at.String(), "--quiet"); r.Code != 0 {
		return fmt.Errorf("restore at %s: %s", at, r.Stderr)
	}
	s, err := pgtest.Open(ctx, data, pgtest.Config{Major: x.primary.Major(), Dir: filepath.Join(dir, "server")})
	if err != nil {
		return err
	}
	defer func() {
		if closed := s.Close(); err == nil {
			err = closed
		}
		if err == nil {
			err = os.RemoveAll(dir)
		}
	}()
	rows, err := s.SQL(ctx, "bench", "select id from seen")
	if err != nil {
		return err
	}
	have := map[int]bool{}
	for _, row := range rows {
		id, err := strconv.Atoi(row[0])
		if err != nil {
			return err
		}
		have[id] = true
	}
	there, lost := 0, 0
	for _, c := range seen {
		switch {
		case c.after <= at && !have[c.id]:
			return fmt.Errorf("the commit of row %d, which returned before %s, is not there at %s", c.id, c.after, at)
		case c.before >= at && have[c.id]:
			return fmt.Errorf("the commit of row %d, which began behind %s, is there at %s", c.id, c.before, at)
		case have[c.id]:
			there++
		default:
			lost++
		}
	}
	if _, err := restoretest.Balanced(ctx, s); err != nil {
		return err
	}
	x.r.Commits, x.r.LostCommits = max(x.r.Commits, there), lost
	x.o.Logf("at %s: %d commits that clients saw are there, %d are later", at, there, lost)
	return nil
}
