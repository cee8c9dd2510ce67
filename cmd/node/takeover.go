package node

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"everpage/backup"
	"everpage/backup/archive"
	"everpage/backup/store"
	"everpage/cluster"
	pb "everpage/pageapi/pagepb/everpage/v1"
	"everpage/wal/pg"
)

// stuck is since when the archive's end has not moved although there is WAL behind it.
type stuck struct {
	since time.Time // zero: it moves, or there is nothing to do
	at    pg.LSN
}

// look tells for how long archiving has been stuck for a reason that another node may not have: the store does not answer here, or denies.
func (x *stuck) look(st archive.Status, now time.Time) time.Duration {
	var told *store.Error
	ours := st.Err == nil || errors.As(st.Err, &told) && store.Temporary(st.Err) // no error yet: a request hangs
	switch {
	case !ours || st.Lag() == 0:
		*x = stuck{}
		return 0
	case x.since.IsZero() || x.at != st.End:
		*x = stuck{now, st.End}
	}
	return now.Sub(x.since)
}

// probeTimeout bounds how long nodes are asked whether they reach the store.
const probeTimeout = 5 * time.Second

// yield hands the lead to a node that reaches the store, when this one has not for long: the leader is the one that archives, and a loss of everything loses
// what is not archived.
func (l *leader) yield(ctx context.Context, s *cluster.State) error {
	b, after := l.n.backups, l.n.cfg.TakeoverAfter
	if b == nil || after <= 0 {
		return nil
	}
	st, _ := b.status()
	if l.stuck.look(st, time.Now()) < after {
		return nil
	}
	l.stuck = stuck{} // whoever is asked now is asked again after as long
	to, err := l.reaches(ctx, s)
	if err != nil {
		return fmt.Errorf("the store can't be reached from here (WAL from %s on is not archived), nor from another node that could lead: %w", st.End, err)
	}
	l.n.cfg.Logger.Warn("the store can't be reached from here, but from another node: it takes the lead, and archives", "archived_up_to", st.End, "error", st.Err, "to", to)
	return l.n.cluster.HandOver(ctx, to)
}

// reaches finds a voter that can write to the store: of several the one that has read furthest.
func (l *leader) reaches(ctx context.Context, s *cluster.State) (id string, err error) {
	servers, err := l.n.cluster.Servers()
	if err != nil {
		return "", err
	}
	ctx, cancel := context.WithTimeout(ctx, probeTimeout)
	defer cancel()
	var mu sync.Mutex
	var wg sync.WaitGroup
	var most uint64
	err = errors.New("there is none")
	for _, x := range servers {
		node := s.Node(x.ID)
		if alive, _ := l.n.cluster.Alive(x.ID); !x.Voter || !alive || node == nil || x.ID == l.n.cluster.ID() {
			continue
		}
		wg.Go(func() {
			var resp *pb.ProbeStoreResponse
			c, failed := l.n.peers.backup(l.n.cluster.PageAddress(x.ID))
			if failed == nil {
				resp, failed = c.ProbeStore(ctx, &pb.ProbeStoreRequest{})
			}
			mu.Lock()
			defer mu.Unlock()
			if failed != nil {
				err = errors.Join(err, fmt.Errorf("%s: %w", node.Name, failed))
			} else if id == "" || resp.ReadableLsn > most {
				id, most = x.ID, resp.ReadableLsn
			}
		})
	}
	wg.Wait()
	if id != "" {
		return id, nil
	}
	return "", err
}

// ProbeStore tells whether this node reaches the store, and may write there.
func (s *backupService) ProbeStore(ctx context.Context, _ *pb.ProbeStoreRequest) (*pb.ProbeStoreResponse, error) {
	b, err := s.backups()
	if err != nil {
		return nil, err
	}
	if err := b.owner.Check(ctx); err != nil {
		return nil, storeStatus(err)
	}
	if _, err := backup.Probe(ctx, b.store, s.n.cluster.ID()); err != nil {
		return nil, storeStatus(err)
	}
	p, _ := s.n.store.Progress(s.n.follow.main())
	return &pb.ProbeStoreResponse{ReadableLsn: uint64(p.Readable)}, nil
}
