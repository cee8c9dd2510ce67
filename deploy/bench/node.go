package main

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"

	"everpage/deploy/pgtest"
	"everpage/wal/pg"
)

// served is a node under test, in a process of its own with the default configuration.
type served struct {
	b       *bench
	cmd     *exec.Cmd
	address string
	log     *os.File
	ended   chan error
}

func (b *bench) serve(ctx context.Context, dir string) (*served, error) {
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return nil, err
	}
	port, err := freePort()
	if err != nil {
		return nil, err
	}
	n := &served{b: b, address: fmt.Sprintf("127.0.0.1:%d", port), ended: make(chan error, 1)}
	if n.log, err = os.Create(filepath.Join(dir, "log")); err != nil {
		return nil, err
	}
	n.cmd = exec.Command(b.everpage, "serve", "--data", filepath.Join(dir, "data"), "--listen", n.address, "--http", "", "--raft", "127.0.0.1:0", "--gossip", "127.0.0.1:0")
	n.cmd.Stdout, n.cmd.Stderr = n.log, n.log
	if err := n.cmd.Start(); err != nil {
		return nil, err
	}
	go func() { n.ended <- n.cmd.Wait() }()
	for end := time.Now().Add(20 * time.Second); ; {
		c, err := net.Dial("tcp", n.address)
		if err == nil {
			return n, c.Close()
		}
		select {
		case err := <-n.ended:
			n.ended <- err
			return nil, fmt.Errorf("the node ended (%v), see %s", err, n.log.Name())
		case <-ctx.Done():
			return nil, errors.Join(context.Cause(ctx), n.stop())
		case <-time.After(50 * time.Millisecond):
		}
		if time.Now().After(end) {
			return nil, errors.Join(fmt.Errorf("the node does not answer: %w", err), n.stop())
		}
	}
}

func (n *served) stop() error {
	defer n.log.Close()
	if err := n.cmd.Process.Signal(syscall.SIGTERM); err != nil {
		return err
	}
	select {
	case err := <-n.ended:
		return err
	case <-time.After(30 * time.Second):
		return errors.Join(errors.New("the node did not stop in 30 s"), n.cmd.Process.Kill())
	}
}

// call runs a command of the binary against the node.
func (n *served) call(ctx context.Context, into any, args ...string) error {
	return n.b.command(ctx, into, append(args, "--server", n.address)...)
}

// peak is the largest resident set that the node has had, MiB.
func (n *served) peak() (float64, error) {
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", n.cmd.Process.Pid))
	if err != nil {
		return 0, err
	}
	for _, line := range strings.Split(string(b), "\n") {
		if f := strings.Fields(line); len(f) == 3 && f[0] == "VmHWM:" {
			kib, err := strconv.ParseFloat(f[1], 64)
			return kib / 1024, err
		}
	}
	return 0, errors.New("/proc tells no VmHWM")
}

// statusResult is what everpage status prints, as far as it is used here.
type statusResult struct {
	Nodes []struct {
		StoreBytes uint64 `json:"store_bytes"`
	} `json:"nodes"`
	Follow struct {
		State    string `json:"state"`
		Message  string `json:"message"`
		Readable pg.LSN `json:"readable_lsn"`
	} `json:"follow"`
}

// waitReadable waits until the node can read an LSN, and gives up when it makes no progress for a minute.
func (n *served) waitReadable(ctx context.Context, lsn pg.LSN) (statusResult, error) {
	last, since := pg.LSN(0), time.Now()
	for {
		var st statusResult
		if err := n.call(ctx, &st, "status"); err != nil {
			return st, err
		}
		at := st.Follow.Readable
		if at >= lsn {
			return st, nil
		}
		if at != last {
			last, since = at, time.Now()
		}
		if time.Since(since) > time.Minute {
			return st, fmt.Errorf("the node stays at %s and does not reach %s: %s, %s", at, lsn, st.Follow.State, st.Follow.Message)
		}
		select {
		case <-ctx.Done():
			return st, context.Cause(ctx)
		case <-time.After(100 * time.Millisecond):
		}
	}
}

// node measures what needs a running primary and a node that follows it: memory, page reads, restores.
func (b *bench) node(ctx context.Context) (err error) {
	dir := filepath.Join(b.work, "node")
	if !b.keep {
		defer os.RemoveAll(dir)
	}
	backrest, err := b.fetchBackrest(ctx)
	if err != nil {
		progress("pgBackRest is not to be had, a copy by pg_basebackup takes its place: %v", err)
	}
	s, rest, err := b.primary(ctx, filepath.Join(dir, "primary"), backrest)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, s.Close()) }()
	if b.report.Postgres, err = s.Value(ctx, "postgres", "show server_version"); err != nil {
		return err
	}
	n, err := b.serve(ctx, filepath.Join(dir, "node"))
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, n.stop()) }()

	progress("node: import of a database of scale %d", b.nodeScale)
	began := time.Now()
	if err := n.call(ctx, nil, "attach", s.URI("postgres"), "--wait"); err != nil {
		return err
	}
	imported := time.Since(began).Seconds()
	if err := rest.backup(ctx); err != nil {
		return err
	}
	bytes, err := databaseSize(ctx, s)
	if err != nil {
		return err
	}
	b.report.add("attach: base backup into the node", "", true, 0, fmt.Sprintf("a database of %.0f MB, primary on the same cores", bytes/1e6),
		of("import", "MB/s", bytes/1e6/imported))

	progress("node: load of %d MB of WAL", b.nodeWAL>>20)
	before, err := walPosition(ctx, s)
	if err != nil {
		return err
	}
	if err := b.load(ctx, s, b.nodeWAL); err != nil {
		return err
	}
	target, err := quiet(ctx, s)
	if err != nil {
		return err
	}
	began = time.Now()
	st, err := n.waitReadable(ctx, target)
	if err != nil {
		return err
	}
	lag := time.Since(began).Seconds()
	written := float64(target-before) / 1e6
	b.report.add("lag at the end of the load", "", true, 0, "until the last byte of the load could be read", of("lag", "s", lag))
	store := float64(0)
	for _, node := range st.Nodes {
		store += float64(node.StoreBytes) / 1e6
	}
	b.report.add("store beside database + WAL", "", true, store/(bytes/1e6+written), "", of("store", "MB", store), of("database + WAL", "MB", bytes/1e6+written))

	if err := b.pages(ctx, n); err != nil {
		return err
	}
	if err := b.restores(ctx, n, s, rest, target); err != nil {
		return err
	}
	peak, err := n.peak()
	if err != nil {
		return err
	}
	note := fmt.Sprintf("default configuration; a database of %.0f MB and %.0f MB of WAL, then page reads and restores", bytes/1e6, written)
	b.report.add("memory of a node (VmHWM)", "≤ 512 MiB", peak <= 512, 0, note, of("peak", "MiB", peak))
	return nil
}

// quiet makes the primary write no more, and is where its WAL ends.
func quiet(ctx context.Context, s *pgtest.Server) (pg.LSN, error) {
	_, err := s.SQL(ctx, "postgres", "alter system set autovacuum = off", "select pg_reload_conf()", "checkpoint")
	if err != nil {
		return 0, err
	}
	v, err := s.CurrentLSN(ctx)
	if err != nil {
		return 0, err
	}
	return pg.ParseLSN(v)
}

// getPageResult is what everpage bench getpage prints, as far as it is used here.
type getPageResult struct {
	Pages   int `json:"pages"`
	Latency struct {
		N    int     `json:"n"`
		P50  float64 `json:"p50"`
		P99  float64 `json:"p99"`
		P999 float64 `json:"p99_9"`
	} `json:"latency"`
	PagesPerSecond float64 `json:"pages_per_second"`
}

// How many clients read how many pages at a time in the pipelined measurements, ours and the echo's.
const (
	readClients = 4
	readBatch   = 32
)

// pages measures reads beside the echo, by turns.
func (b *bench) pages(ctx context.Context, n *served) error {
	d := time.Duration(b.readSeconds) * time.Second
	var p50, p99, p999, rate, echo50, echoRate, short50, shortRate, bare50, bareRate []float64
	for i := range b.runs {
		var r getPageResult
		if err := n.call(ctx, &r, "bench", "getpage", "--duration", d.String(), "--clients", strconv.Itoa(readClients), "--batch", strconv.Itoa(readBatch),
			"--seed", strconv.FormatInt(b.seed+int64(i), 10)); err != nil {
			return err
		}
		e, err := b.measureEcho(ctx, echoPage, readClients, readBatch, d)
		if err != nil {
			return err
		}
		short, err := b.measureEcho(ctx, shortRequest, readClients, readBatch, d)
		if err != nil {
			return err
		}
		bare, err := b.measureStream(ctx, readClients, readBatch, d)
		if err != nil {
			return err
		}
		bare50, bareRate = append(bare50, bare.p50), append(bareRate, bare.pagesPerSecond)
		p50, p99, p999, rate = append(p50, r.Latency.P50), append(p99, r.Latency.P99), append(p999, r.Latency.P999), append(rate, r.PagesPerSecond)
		echo50, echoRate = append(echo50, e.p50), append(echoRate, e.pagesPerSecond)
		short50, shortRate = append(short50, short.p50), append(shortRate, short.pagesPerSecond)
		progress("pages, run %d: p50 %.1f µs, echo %.1f µs, bare stream %.1f; pipelined %.0f pages/s, echo %.0f, bare stream %.0f",
			i+1, r.Latency.P50, e.p50, bare.p50, r.PagesPerSecond, e.pagesPerSecond, bare.pagesPerSecond)
	}
	ours, peer := of("p50", "µs", p50...), of("8 KiB TCP echo", "µs", echo50...)
	ratio := ours.Median / peer.Median
	b.report.add("GetPage, warm, one client: p50", "≤ 2.5×", ratio <= 2.5, ratio, "4096 random pages of all relations, gRPC on the loopback address, client and server processes on the same cores",
		ours, peer, of("64 bytes for 8 KiB", "µs", short50...), of("bare gRPC stream of 8 KiB", "µs", bare50...))
	b.report.add("GetPage, warm, one client: p99", "", true, 0, "", of("p99", "µs", p99...))
	b.report.add("GetPage, warm, one client: p99.9", "", true, 0, "", of("p99.9", "µs", p999...))
	ours, peer = of("GetPages", "pages/s", rate...), of("8 KiB TCP echo, pipelined", "pages/s", echoRate...)
	ratio = ours.Median / peer.Median
	b.report.add("GetPage, warm, pipelined", "≥ 0.6×", ratio >= 0.6, ratio, fmt.Sprintf("%d clients, %d pages under way each", readClients, readBatch),
		ours, peer, of("64 bytes for 8 KiB, pipelined", "pages/s", shortRate...), of("bare gRPC stream", "pages/s", bareRate...))
	return nil
}

func freePort() (int, error) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return 0, err
	}
	port := l.Addr().(*net.TCPAddr).Port
	return port, l.Close()
}
