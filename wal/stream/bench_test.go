package stream_test

import (
	"context"
	"testing"

	"everpage/deploy/pgtest"
	"everpage/wal"
	"everpage/wal/pg"
	"everpage/wal/stream"
)

// countingSink takes WAL and keeps none.
type countingSink struct {
	memorySink
	next, upTo pg.LSN
	reached    chan struct{}
}

func (c *countingSink) Resume(context.Context) (stream.Position, error) { return c.pos, nil }

func (c *countingSink) Append(_ pg.LSN, p []byte) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	before := c.next
	c.next += pg.LSN(len(p))
	if before < c.upTo && c.next >= c.upTo {
		close(c.reached)
	}
	return nil
}

func (c *countingSink) Flush() (pg.LSN, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.next, nil
}

func (c *countingSink) Applied() pg.LSN { return c.pos.First }

// BenchmarkReceive streams WAL that the server already has, over loopback, into a sink that drops it.
func BenchmarkReceive(b *testing.B) {
	ctx := context.Background()
	s := pgtest.New(b, pgtest.Config{Settings: map[string]string{"wal_keep_size": "4GB", "max_wal_size": "4GB", "autovacuum": "off"}})
	const slot = "everpage_bench_node1"
	c, err := stream.Connect(ctx, s.ConnString("postgres"), stream.Replication, "bench")
	if err != nil {
		b.Fatal(err)
	}
	defer c.Close()
	if _, err := stream.EnsureSlot(ctx, c, slot); err != nil {
		b.Fatal(err)
	}
	server, err := stream.Identify(ctx, c)
	if err != nil {
		b.Fatal(err)
	}
	if _, err := s.Pgbench(ctx, "-i", "-q", "-s", "20"); err != nil {
		b.Fatal(err)
	}
	text, err := s.CurrentLSN(ctx)
	if err != nil {
		b.Fatal(err)
	}
	end, err := pg.ParseLSN(text)
	if err != nil {
		b.Fatal(err)
	}
	first := server.SegmentSize.Floor(server.Position)
	b.SetBytes(int64(end - first))
	b.ReportAllocs()
	for b.Loop() {
		sink := &countingSink{next: first, upTo: end, reached: make(chan struct{})}
		sink.pos = stream.Position{Timeline: 1, First: first, Next: first, History: wal.History{Timeline: 1}}
		r, err := stream.NewReceiver(stream.ReceiverOptions{Conninfo: s.ConnString("postgres"), Name: "bench", Slot: slot, SystemID: server.SystemID, Major: server.Major, SegmentSize: server.SegmentSize}, sink)
		if err != nil {
			b.Fatal(err)
		}
		run, cancel := context.WithCancel(ctx)
		done := make(chan error, 1)
		go func() { done <- r.Run(run) }()
		select {
		case <-sink.reached:
		case err := <-done:
			b.Fatal(err)
		}
		cancel()
		<-done
	}
}
