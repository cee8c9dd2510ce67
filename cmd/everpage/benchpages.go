package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"slices"
	"time"

	"github.com/spf13/cobra"
	"golang.org/x/sync/errgroup"

	"everpage/pageapi"
	"everpage/wal/pg"
)

// getPageFlags are what bench getpage is told.
type getPageFlags struct {
	pages    int
	clients  int
	batch    int
	duration time.Duration
	seed     uint64
	lsn      string
}

// getPageResult is what bench getpage has measured. Latencies are in microseconds.
type getPageResult struct {
	LSN     pg.LSN    `json:"lsn"`
	Pages   int       `json:"pages"` // distinct pages that were read
	Seed    uint64    `json:"seed"`
	Latency latencies `json:"latency"` // of one client that asks for one page at a time

	Clients        int       `json:"clients"`
	Batch          int       `json:"batch"`
	PagesPerSecond float64   `json:"pages_per_second"` // of all clients, each with one request of a batch under way
	BatchLatency   latencies `json:"batch_latency"`
}

// latencies of requests in microseconds.
type latencies struct {
	N    int     `json:"n"`
	P50  float64 `json:"p50"`
	P99  float64 `json:"p99"`
	P999 float64 `json:"p99_9"`
	Max  float64 `json:"max"`
}

func newBenchGetPage(g *globals) *cobra.Command {
	var f getPageFlags
	c := &cobra.Command{
		Use:   "getpage",
		Short: "Measure page reads of a running node, warm",
		Long: `Read random pages of the relations that exist at the newest readable LSN (or --lsn): first each of --pages once, to warm the node, then for --duration
by one client that asks for one page at a time (latency), then for --duration by --clients that ask for --batch pages at a time (pages a second).`,
		Example: "  everpage bench getpage --clients 8 --batch 32 -o json",
		Args:    cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			at, err := optionalLSN("--lsn", f.lsn)
			if err != nil {
				return err
			}
			if f.pages < 1 || f.clients < 1 || f.batch < 1 || f.batch > pageapi.MaxBatch || f.duration <= 0 {
				return usageError{fmt.Errorf("--pages, --clients and --duration must be positive, --batch from 1 to %d", pageapi.MaxBatch)}
			}
			client, err := g.client()
			if err != nil {
				return err
			}
			defer client.Close()
			b := &getPageBench{f: &f, c: client, at: pageapi.Position{LSN: at}, timeout: g.timeout}
			r, err := b.run(cmd.Context())
			if err != nil {
				return err
			}
			return g.print(cmd.OutOrStdout(), r, r.table)
		},
	}
	fl := c.Flags()
	fl.IntVar(&f.pages, "pages", 4096, "`number` of pages that are read again and again")
	fl.IntVar(&f.clients, "clients", 8, "`number` of clients of the second part")
	fl.IntVar(&f.batch, "batch", 32, "`pages` in a request of the second part")
	fl.DurationVar(&f.duration, "duration", 5*time.Second, "how long each part takes")
	fl.Uint64Var(&f.seed, "seed", 1, "of the choice of pages")
	fl.StringVar(&f.lsn, "lsn", "", "`LSN` to read at (default: the newest readable)")
	return c
}

type getPageBench struct {
	f       *getPageFlags
	c       *pageapi.Client
	at      pageapi.Position
	timeout time.Duration
	sets    []pageSet
	total   int
}

// pageSet is the pages of one relation fork that are read.
type pageSet struct {
	rel    pg.RelFork
	blocks []pg.BlockNumber
}

func (b *getPageBench) run(ctx context.Context) (*getPageResult, error) {
	if err := b.choose(ctx); err != nil {
		return nil, err
	}
	for _, s := range b.sets {
		for from := 0; from < len(s.blocks); from += pageapi.MaxBatch {
			blocks := s.blocks[from:min(from+pageapi.MaxBatch, len(s.blocks))]
			if _, err := b.c.Pages(ctx, b.at, s.rel, blocks, make([]byte, len(blocks)*pg.BlockSize)); err != nil {
				return nil, err
			}
		}
	}
	r := &getPageResult{LSN: b.at.LSN, Pages: b.total, Seed: b.f.seed, Clients: b.f.clients, Batch: b.f.batch}
	// The first client's first second is not counted: connections and streams are made in it.
	if _, err := b.client(ctx, 0, 1, time.Second); err != nil {
		return nil, err
	}
	single, err := b.client(ctx, 0, 1, b.f.duration)
	if err != nil {
		return nil, err
	}
	r.Latency = summarise(single)
	all := make([][]time.Duration, b.f.clients)
	g, gctx := errgroup.WithContext(ctx)
	began := time.Now()
	for i := range all {
		g.Go(func() (err error) {
			all[i], err = b.client(gctx, uint64(i)+1, b.f.batch, b.f.duration)
			return err
		})
	}
	if err := g.Wait(); err != nil {
		return nil, err
	}
	took := time.Since(began)
	batches := slices.Concat(all...)
	r.PagesPerSecond = float64(len(batches)*b.f.batch) / took.Seconds()
	r.BatchLatency = summarise(batches)
	return r, nil
}

// choose settles the LSN and picks pages, evenly over all pages of all relations.
func (b *getPageBench) choose(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, b.timeout)
	defer cancel()
	type fork struct {
		rel    pg.RelFork
		blocks uint32
	}
	var forks []fork
	sum := uint64(0)
	lsn, err := b.c.Relations(ctx, b.at, func(rel pg.RelFork, blocks pg.BlockNumber) error {
		if blocks > 0 && rel.Fork != pg.InitFork {
			forks = append(forks, fork{rel, blocks})
			sum += uint64(blocks)
		}
		return nil
	})
	if err != nil {
		return err
	}
	if sum == 0 {
		return errors.New("there is no page to read: all relations are empty")
	}
	b.at.LSN = lsn
	rng := rand.New(rand.NewPCG(b.f.seed, 0))
	want := uint64(b.f.pages)
	seen, passed := uint64(0), uint64(0)
	// Every page has the same chance: so many of the rest are wanted from so many that are left.
	for _, f := range forks {
		s := pageSet{rel: f.rel}
		for block := range f.blocks {
			left := sum - seen
			seen++
			if rng.Uint64N(left) < want-passed {
				passed++
				s.blocks = append(s.blocks, block)
			}
			if passed == want {
				break
			}
		}
		if len(s.blocks) > 0 {
			rng.Shuffle(len(s.blocks), func(i, j int) { s.blocks[i], s.blocks[j] = s.blocks[j], s.blocks[i] })
			b.sets = append(b.sets, s)
			b.total += len(s.blocks)
		}
		if passed == want {
			break
		}
	}
	return nil
}

// client reads batches of random pages for a time and tells how long each took.
func (b *getPageBench) client(ctx context.Context, id uint64, batch int, d time.Duration) ([]time.Duration, error) {
	rng := rand.New(rand.NewPCG(b.f.seed, id+1))
	took := make([]time.Duration, 0, 1<<16)
	blocks := make([]pg.BlockNumber, batch)
	dst := make([]byte, batch*pg.BlockSize)
	for end := time.Now().Add(d); ; {
		s := b.pick(rng)
		for i := range blocks {
			blocks[i] = s.blocks[rng.IntN(len(s.blocks))]
		}
		began := time.Now()
		if began.After(end) {
			return took, nil
		}
		if _, err := b.c.Pages(ctx, b.at, s.rel, blocks, dst); err != nil {
			return nil, err
		}
		took = append(took, time.Since(began))
	}
}

// pick chooses a relation in proportion to its pages.
func (b *getPageBench) pick(rng *rand.Rand) *pageSet {
	n := rng.IntN(b.total)
	for i := range b.sets {
		if n -= len(b.sets[i].blocks); n < 0 {
			return &b.sets[i]
		}
	}
	return &b.sets[len(b.sets)-1]
}

func summarise(took []time.Duration) latencies {
	if len(took) == 0 {
		return latencies{}
	}
	slices.Sort(took)
	at := func(q float64) float64 {
		return float64(took[min(len(took)-1, int(q*float64(len(took))))].Nanoseconds()) / 1000
	}
	return latencies{N: len(took), P50: at(0.5), P99: at(0.99), P999: at(0.999), Max: at(1)}
}

func (r *getPageResult) table(w io.Writer) error {
	fmt.Fprintf(w, "%d pages at %s, seed %d\n", r.Pages, r.LSN, r.Seed)
	row := func(what string, l latencies, pages float64) []string {
		rate := ""
		if pages > 0 {
			rate = fmt.Sprintf("%.0f", pages)
		}
		return []string{what, fmt.Sprint(l.N), fmt.Sprintf("%.1f", l.P50), fmt.Sprintf("%.1f", l.P99), fmt.Sprintf("%.1f", l.P999), fmt.Sprintf("%.1f", l.Max), rate}
	}
	return columns(w, []string{"CLIENTS", "REQUESTS", "P50 µs", "P99 µs", "P99.9 µs", "MAX µs", "PAGES/S"},
		row("1, a page at a time", r.Latency, 0),
		row(fmt.Sprintf("%d, %d pages at a time", r.Clients, r.Batch), r.BatchLatency, r.PagesPerSecond))
}
