package main

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os/exec"
	"slices"
	"strings"
	"time"

	"golang.org/x/sync/errgroup"
)

// The echo is what page reads are held against: another process on the loopback address that sends 8 KiB for each 8 KiB (or, for the stricter
// comparison, for each 64 bytes) that it receives, and does nothing else.

const (
	echoArg      = "echo-server"
	echoPage     = 8192
	shortRequest = 64
)

// serveEcho is the other process: it prints its address and serves until its standard input ends. request is the size of a request in bytes.
func serveEcho(request string) error {
	var n int
	if _, err := fmt.Sscan(request, &n); err != nil || n < 1 || n > echoPage {
		return fmt.Errorf("echo: request size %q", request)
	}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return err
	}
	fmt.Println(l.Addr())
	for {
		c, err := l.Accept()
		if err != nil {
			return err
		}
		go answer(c, n)
	}
}

// answer echoes until the client is gone. Answers to requests that have arrived together leave together.
func answer(c net.Conn, request int) {
	defer c.Close()
	r, w := bufio.NewReaderSize(c, 1<<18), bufio.NewWriterSize(c, 1<<18)
	page := make([]byte, echoPage)
	for {
		if _, err := io.ReadFull(r, page[:request]); err != nil {
			return
		}
		if _, err := w.Write(page); err != nil {
			return
		}
		if r.Buffered() < request {
			if err := w.Flush(); err != nil {
				return
			}
		}
	}
}

// echo is what one measurement has found.
type echo struct {
	p50, p99       float64 // µs, one client, one page at a time
	pagesPerSecond float64 // pipelined
}

// measureEcho starts the other process and measures: one client that waits for each answer, then clients that keep depth requests under way.
func (b *bench) measureEcho(ctx context.Context, request, clients, depth int, d time.Duration) (e echo, err error) {
	address, stop, err := b.start(ctx, echoArg, fmt.Sprint(request))
	if err != nil {
		return e, err
	}
	defer func() { err = stop(err) }()
	if _, err := echoLatency(address, request, d/5); err != nil { // warms up
		return e, err
	}
	took, err := echoLatency(address, request, d)
	if err != nil {
		return e, err
	}
	slices.Sort(took)
	at := func(q float64) float64 { return float64(took[int(q*float64(len(took)-1))].Nanoseconds()) / 1000 }
	e.p50, e.p99 = at(0.5), at(0.99)
	counts := make([]int, clients)
	g, _ := errgroup.WithContext(ctx)
	began := time.Now()
	for i := range counts {
		g.Go(func() (err error) {
			counts[i], err = echoPipelined(address, request, depth, d)
			return err
		})
	}
	if err := g.Wait(); err != nil {
		return e, err
	}
	sum := 0
	for _, n := range counts {
		sum += n
	}
	e.pagesPerSecond = float64(sum) / time.Since(began).Seconds()
	return e, nil
}

// start runs this program as the other process, which prints its address. stop ends it, and adds to err what went wrong.
func (b *bench) start(ctx context.Context, args ...string) (address string, stop func(err error) error, err error) {
	cmd := exec.CommandContext(ctx, b.self, args...)
	out, err := cmd.StdoutPipe()
	if err != nil {
		return "", nil, err
	}
	if err := cmd.Start(); err != nil {
		return "", nil, err
	}
	stop = func(err error) error {
		killed := cmd.Process.Kill()
		if werr := cmd.Wait(); killed != nil {
			err = errors.Join(err, killed, werr)
		}
		return err
	}
	address, err = bufio.NewReader(out).ReadString('\n')
	if err != nil {
		return "", nil, stop(fmt.Errorf("%s: %w", args[0], err))
	}
	return strings.TrimSpace(address), stop, nil
}

func echoLatency(address string, request int, d time.Duration) ([]time.Duration, error) {
	c, err := net.Dial("tcp", address)
	if err != nil {
		return nil, err
	}
	defer c.Close()
	page := make([]byte, echoPage)
	var took []time.Duration
	for end := time.Now().Add(d); ; {
		began := time.Now()
		if began.After(end) && len(took) > 0 {
			return took, nil
		}
		if _, err := c.Write(page[:request]); err != nil {
			return nil, err
		}
		if _, err := io.ReadFull(c, page); err != nil {
			return nil, err
		}
		took = append(took, time.Since(began))
	}
}

// echoPipelined sends depth requests in one go and reads their answers, again and again.
func echoPipelined(address string, request, depth int, d time.Duration) (int, error) {
	c, err := net.Dial("tcp", address)
	if err != nil {
		return 0, err
	}
	defer c.Close()
	requests, answers := make([]byte, depth*request), make([]byte, depth*echoPage)
	n := 0
	for end := time.Now().Add(d); time.Now().Before(end); n += depth {
		// Sent beside reading: with large requests both directions' buffers would fill up.
		sent := make(chan error, 1)
		go func() {
			_, err := c.Write(requests)
			sent <- err
		}()
		if _, err := io.ReadFull(c, answers); err != nil {
			return n, err
		}
		if err := <-sent; err != nil {
			return n, err
		}
	}
	return n, nil
}
