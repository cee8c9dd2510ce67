//go:build long

package e2e

import (
	"context"
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"everpage/deploy/nodetest"
	"everpage/deploy/pgtest"
	"everpage/deploy/s3test"
)

// background runs pgbench until the test stops it.
func background(t *testing.T, s *pgtest.Server, rate string) (stop func()) {
	t.Helper()
	ctx, cancel := context.WithCancel(t.Context())
	var done sync.WaitGroup
	done.Go(func() {
		_, _ = s.Pgbench(ctx, "-n", "-c", "2", "-T", "600", "-R", rate) // ends when it is killed
	})
	stop = sync.OnceFunc(func() { cancel(); done.Wait() })
	t.Cleanup(stop)
	return stop
}

func wait(t *testing.T, d time.Duration) {
	t.Helper()
	select {
	case <-t.Context().Done():
		t.Fatal(t.Context().Err())
	case <-time.After(d):
	}
}

// TestStoreFaults: whatever the way to the store does to requests, nothing that was acknowledged is lost, nothing that a manifest names is missing, and what
// was left over is cleaned up.
func TestStoreFaults(t *testing.T) {
	t.Parallel()
	random := dice(t)
	period := 4 * time.Second
	if text := os.Getenv("EVERPAGE_FAULT_PERIOD"); text != "" {
		var err error
		if period, err = time.ParseDuration(text); err != nil {
			t.Fatal(err)
		}
	}
	s3 := s3test.New(t, t.TempDir())
	if err := s3.Bucket("history"); err != nil {
		t.Fatal(err)
	}
	proxy := s3test.NewProxy(t, s3)
	args := []string{"--archive-every", "200ms", "--backup-every", "1s", "--run", "1000000", "--gc-grace", "1s", "--spool-keep", "1"}
	n := nodetest.New(t, nodetest.Config{Binary: everpage, Data: filepath.Join(t.TempDir(), "node"), Env: s3.Env(),
		Args: append([]string{"--segment-blocks", "64", "--shards", "8", "--store", proxy.URL("history", "cluster")}, args...)})
	s := newPrimary(t)
	pgbench(t, s, "-i", "-s", "1")
	attach(t, n, s)
	first := caughtUp(t, n, s)
	stop := background(t, s, "60")
	var mu sync.Mutex
	chance := func(f s3test.Fault, percent int) func(*http.Request) s3test.Fault {
		return func(*http.Request) s3test.Fault {
			mu.Lock()
			defer mu.Unlock()
			if random.IntN(100) < percent {
				return f
			}
			return s3test.Fault{}
		}
	}
	faults := []struct {
		what string
		fn   func(*http.Request) s3test.Fault
	}{
		{"down", chance(s3test.Fault{Reset: true}, 100)},
		{"503", chance(s3test.Fault{Status: http.StatusServiceUnavailable}, 60)},
		{"slow", chance(s3test.Fault{Delay: 400 * time.Millisecond}, 100)},
		{"bodies cut short", chance(s3test.Fault{Truncate: true}, 50)},
		{"access denied", chance(s3test.Fault{Status: http.StatusForbidden}, 80)},
		{"answers lost", chance(s3test.Fault{Lost: true}, 30)},
	}
	faults = append(faults, struct {
		what string
		fn   func(*http.Request) s3test.Fault
	}{"all of it", func(r *http.Request) s3test.Fault {
		mu.Lock()
		which := random.IntN(3 * len(faults))
		mu.Unlock()
		if which < 6 {
			return faults[which].fn(r)
		}
		return s3test.Fault{}
	}})
	random.Shuffle(len(faults)-1, func(i, j int) { faults[i], faults[j] = faults[j], faults[i] })
	for _, f := range faults {
		proxy.Decide(f.fn)
		_, before, _ := proxy.Seen()
		wait(t, period)
		n.Run(t.Context(), "gc", "--timeout", "2s") // may fail, must not hurt
		list := backupList(t, n)
		if _, after, _ := proxy.Seen(); after == before {
			t.Errorf("%s: no request was harmed", f.what)
		}
		t.Logf("%s: archive lag %d, %s; layers behind by %d, %s", f.what, list.Archive.Lag, list.Archive.Error, list.Lag, list.Error)
		proxy.Decide(nil)
		n.Run(t.Context(), "backup", "now")
	}
	stop()
	end := caughtUp(t, n, s)
	eventually(t, "the store has all", func() (bool, string) {
		r := n.Run(t.Context(), "backup", "now")
		l := backupList(t, n)
		return r.Code == 0 && l.Archive.End >= end && l.Archive.Error == "" && l.Error == "" && l.Branches[0].Newest >= end && len(l.Archive.Gaps) == 0, fmt.Sprintf("%s %+v", r.Stderr, l)
	})
	n.Must(t, "verify")
	eventually(t, "nothing is left over", func() (bool, string) {
		n.Must(t, "gc")
		var v struct{ Notes []string }
		if err := n.JSON(t.Context(), &v, "verify"); err != nil {
			t.Fatal(err)
		}
		return !strings.Contains(fmt.Sprint(v.Notes), "orphan"), fmt.Sprint(v.Notes)
	})
	want := recordedDigests(t, n, random, first, end, 3)
	// A new node, through the same way: each read is right, or an error.
	var again sync.Once
	harm := chance(s3test.Fault{Truncate: true}, 15)
	throttle := chance(s3test.Fault{Status: http.StatusServiceUnavailable}, 15)
	proxy.Decide(func(r *http.Request) (f s3test.Fault) {
		again.Do(func() { f = s3test.Fault{Reset: true} })
		if f == (s3test.Fault{}) {
			f = harm(r)
		}
		if f == (s3test.Fault{}) {
			f = throttle(r)
		}
		return f
	})
	cfg := nodetest.Config{Binary: everpage, Data: filepath.Join(t.TempDir(), "recovered"), Env: s3.Env(),
		Args: append([]string{"--node", "node2", "--recover", "--store", proxy.URL("history", "cluster")}, args...)}
	fresh := nodetest.New(t, cfg) // it waits and tries again until it is up
	for at, sum := range want {
		eventually(t, "all pages are read", func() (bool, string) {
			got, _, err := fresh.Digest(t.Context(), at)
			if err == nil && got != sum {
				t.Fatalf("at %s all pages have the digest %x, it was %x", at, got, sum)
			}
			return err == nil, fmt.Sprint(err)
		})
	}
	proxy.Decide(nil)
	refused(t, n, 1, []string{"another cluster"}, "gc")
	refused(t, n, 1, []string{"another cluster"}, "backup", "now")
}

// TestPausedNodes: a leader sleeps at random moments while the others go on, upload and remove garbage; when it wakes up it changes nothing that isn't its own.
func TestPausedNodes(t *testing.T) {
	t.Parallel()
	random := dice(t)
	s3 := s3test.New(t, t.TempDir())
	if err := s3.Bucket("history"); err != nil {
		t.Fatal(err)
	}
	args := []string{"--store", s3.URL("history", "cluster"), "--archive-every", "200ms", "--backup-every", "1s", "--run", "1000000", "--gc-grace", "1s", "--dead-after", "60s"}
	c, err := nodetest.StartCluster(t.Context(), 3, nodetest.Config{Binary: everpage, Data: t.TempDir(), Env: s3.Env(), Args: append([]string{"--segment-blocks", "64"}, args...)},
		func(i int, c *nodetest.Config) {
			if i == 0 {
				c.Args = append(c.Args, "--shards", "8")
			}
		})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	s := newPrimary(t)
	pgbench(t, s, "-i", "-s", "1")
	attach(t, c.Nodes[0], s)
	ctx, cancel := context.WithTimeout(t.Context(), 5*patience)
	defer cancel()
	if err := c.Settled(ctx, 24); err != nil {
		t.Fatal(err)
	}
	first := caughtUp(t, c.Nodes[0], s)
	stop := background(t, s, "60")
	for range 4 {
		wait(t, time.Duration(500+random.IntN(1500))*time.Millisecond)
		old := leaderOf(t, c.Nodes[0], c.Nodes)
		other := c.Nodes[(old+1)%3]
		stopped := make(chan struct{})
		go func() { // all at once: the leader is to be caught in the middle of something
			defer close(stopped)
			c.Nodes[old].Run(ctx, "backup", "now", "--timeout", "5s")
		}()
		wait(t, time.Duration(random.IntN(300))*time.Millisecond)
		if err := c.Nodes[old].Signal(syscall.SIGSTOP); err != nil {
			t.Fatal(err)
		}
		eventually(t, "another node leads", func() (bool, string) {
			list, err := other.Members(ctx)
			for i, m := range list {
				if m.Leader && i != old {
					return true, ""
				}
			}
			return false, fmt.Sprintf("%+v %v", list, err)
		})
		leads := c.Nodes[leaderOf(t, other, c.Nodes)]
		eventually(t, "the new leader removes garbage", func() (bool, string) {
			r := leads.Run(ctx, "backup", "now", "--timeout", "20s")
			g := leads.Run(ctx, "gc", "--timeout", "20s") // of the nodes all but the one that sleeps, and the store
			away := fmt.Sprintf("node%d could not collect: it does not answer", old+1)
			return g.Code == 0 || g.Code == 1 && strings.Contains(g.Stderr, away) && strings.Contains(g.Stdout, "objects of the store removed"), r.Stderr + g.Stdout + g.Stderr
		})
		if err := c.Nodes[old].Signal(syscall.SIGCONT); err != nil {
			t.Fatal(err)
		}
		c.Nodes[old].Run(ctx, "gc", "--timeout", "5s")
		<-stopped
	}
	stop()
	end := caughtUp(t, c.Nodes[0], s)
	leader := leaderOf(t, c.Nodes[0], c.Nodes)
	eventually(t, "the store has all", func() (bool, string) {
		var errs string
		for _, n := range c.Nodes { // each uploads its shards, the leader what is small
			errs += n.Run(ctx, "backup", "now", "--timeout", "20s").Stderr
		}
		l := backupList(t, c.Nodes[leader])
		return len(l.Branches) == 1 && l.Branches[0].Newest >= end && l.Archive.End >= end && len(l.Archive.Gaps) == 0, fmt.Sprintf("%s %+v", errs, l)
	})
	c.Nodes[leader].Must(t, "verify")
	want := recordedDigests(t, c.Nodes[leader], random, first, end, 3)

	// The whole cluster sleeps, and somebody recovers from its store. Awake again it finds that it is no longer the one that writes there.
	for _, n := range c.Nodes {
		if err := n.Signal(syscall.SIGSTOP); err != nil {
			t.Fatal(err)
		}
	}
	fresh := nodetest.New(t, nodetest.Config{Binary: everpage, Data: filepath.Join(t.TempDir(), "recovered"), Env: s3.Env(), Args: append([]string{"--node", "fresh", "--recover"}, args...)})
	for _, n := range c.Nodes {
		if err := n.Signal(syscall.SIGCONT); err != nil {
			t.Fatal(err)
		}
	}
	pgbench(t, s, "-n", "-c", "2", "-t", "100")
	eventually(t, "the former cluster is refused", func() (bool, string) {
		l := leaderOf(t, c.Nodes[0], c.Nodes)
		g := c.Nodes[l].Run(ctx, "gc", "--timeout", "10s")
		b := c.Nodes[l].Run(ctx, "backup", "now", "--timeout", "20s")
		return strings.Contains(g.Stderr, "another cluster") && strings.Contains(b.Stderr, "another cluster"), g.Stderr + b.Stderr
	})
	last := caughtUp(t, fresh, s)
	eventually(t, "the new cluster's backup is up to date", func() (bool, string) {
		r := fresh.Run(ctx, "backup", "now", "--timeout", "20s")
		l := backupList(t, fresh)
		return r.Code == 0 && l.Branches[0].Newest >= last, fmt.Sprintf("%s %+v", r.Stderr, l)
	})
	fresh.Must(t, "gc")
	fresh.Must(t, "verify")
	compareDigests(t, fresh, want)
}

// TestTakeover: the way from the leader to the store is cut, that of the others is not. One of them takes the lead and archives, the shards of the node that is
// cut off are backed up by others, too, and once the way is open again all is as ever.
func TestTakeover(t *testing.T) {
	t.Parallel()
	s3 := s3test.New(t, t.TempDir())
	if err := s3.Bucket("history"); err != nil {
		t.Fatal(err)
	}
	proxy := s3test.NewProxy(t, s3)
	args := []string{"--archive-every", "200ms", "--backup-every", "1s", "--run", "1000000", "--gc-grace", "1s", "--dead-after", "60s", "--takeover-after", "3s", "--segment-blocks", "64"}
	c, err := nodetest.StartCluster(t.Context(), 3, nodetest.Config{Binary: everpage, Data: t.TempDir(), Env: s3.Env(), Args: args}, func(i int, c *nodetest.Config) {
		if i == 0 {
			c.Args = append(c.Args, "--shards", "8", "--store", proxy.URL("history", "cluster"))
		} else {
			c.Args = append(c.Args, "--store", s3.URL("history", "cluster"))
		}
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	s := newPrimary(t)
	pgbench(t, s, "-i", "-s", "1")
	attach(t, c.Nodes[0], s)
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	if err := c.Settled(ctx, 24); err != nil {
		t.Fatal(err)
	}
	if l := leaderOf(t, c.Nodes[1], c.Nodes); l != 0 {
		t.Fatalf("node%d leads", l+1)
	}
	for _, fault := range []s3test.Fault{{Status: http.StatusForbidden}, {Delay: time.Hour}} {
		proxy.Decide(func(*http.Request) s3test.Fault { return fault })
		began := time.Now()
		pgbench(t, s, "-n", "-c", "2", "-t", "200")
		end := caughtUp(t, c.Nodes[0], s)
		var leads int
		eventually(t, "another node archives", func() (bool, string) {
			leads = leaderOf(t, c.Nodes[1], c.Nodes)
			l := backupList(t, c.Nodes[leads])
			return leads != 0 && l.Archive.End >= end && l.Archive.Error == "" && len(l.Archive.Gaps) == 0, fmt.Sprintf("node%d leads: %+v", leads+1, l)
		})
		t.Logf("%+v: node%d leads and has archived all after %s", fault, leads+1, time.Since(began))
		eventually(t, "all shards are backed up", func() (bool, string) {
			l := backupList(t, c.Nodes[leads])
			return l.Branches[0].Newest >= end, fmt.Sprintf("%+v", l)
		})
		c.Nodes[leads].Must(t, "verify")
		proxy.Decide(nil)
		eventually(t, "the node is back", func() (bool, string) {
			l := backupList(t, c.Nodes[0])
			return l.Error == "", l.Error
		})
		lead(t, c, 0)
	}
}

// lead makes a node the leader, by ending others that are for a moment.
func lead(t *testing.T, c *nodetest.Cluster, want int) {
	t.Helper()
	eventually(t, fmt.Sprintf("node%d leads", want+1), func() (bool, string) {
		l := leaderOf(t, c.Nodes[want], c.Nodes)
		if l == want {
			return true, ""
		}
		c.Nodes[l].Kill9()
		eventually(t, "another leads", func() (bool, string) {
			now := leaderOf(t, c.Nodes[want], c.Nodes)
			return now != l, fmt.Sprintf("node%d", now+1)
		})
		return false, fmt.Sprint(c.Nodes[l].StartAgain(t.Context()))
	})
}

// leaderOf is which node leads, as one of them sees it.
func leaderOf(t *testing.T, ask *nodetest.Node, nodes []*nodetest.Node) (leader int) {
	t.Helper()
	eventually(t, "a node leads", func() (bool, string) {
		list, err := ask.Members(t.Context())
		for i, m := range list {
			if m.Leader && m.Alive && i < len(nodes) {
				leader = i
				return true, ""
			}
		}
		return false, fmt.Sprintf("%+v, %v", list, err)
	})
	return leader
}
