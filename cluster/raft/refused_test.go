package raft

import (
	"log/slog"
	"net"
	"sync/atomic"
	"testing"
	"time"

	"github.com/hashicorp/raft"

	"everpage/cluster/fsm"
)

// TestRefusedEntries has a follower refuse entries while more wait to be sent, as one does whose disk is full, and wants it to get them once it takes them, and the
// leader to end when it is closed.
func TestRefusedEntries(t *testing.T) {
	cluster := func() string { return "one" }
	listen := func() net.Listener {
		l, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		return l
	}
	log := slog.New(slog.DiscardHandler)
	leader, err := Start(Options{ID: "leader", Dir: t.TempDir(), Listen: listen(), Bootstrap: true, Cluster: cluster, Logger: log}, fsm.New(&fsm.State{}))
	if err != nil {
		t.Fatal(err)
	}
	follower := raft.NewNetworkTransportWithConfig(&raft.NetworkTransportConfig{Stream: newStream(listen(), "", cluster), MaxPool: maxPool, Timeout: transportTimeout, Logger: &hclogger{log: log}})
	var refuse atomic.Pointer[chan struct{}] // closed when the first refusal may go out
	held := make(chan struct{}, 1)
	taken := make(chan uint64, 1000)
	done := make(chan struct{})
	go func() {
		defer close(done)
		for {
			var rpc raft.RPC
			select {
			case rpc = <-follower.Consumer():
			case <-t.Context().Done():
				return
			}
			req := rpc.Command.(*raft.AppendEntriesRequest) // nothing else comes to one without a vote
			resp := &raft.AppendEntriesResponse{Term: req.Term, Success: true}
			if n := len(req.Entries); n > 0 {
				resp.LastLog = req.Entries[n-1].Index
				if c := refuse.Load(); c != nil {
					select {
					case held <- struct{}{}:
					default:
					}
					<-*c
					resp.Success, resp.LastLog = false, req.PrevLogEntry
				} else {
					taken <- resp.LastLog
				}
			}
			rpc.Respond(resp, nil)
		}
	}()
	t.Cleanup(func() { <-done })
	for !leader.Leads() {
		select {
		case <-leader.LeaderChanges():
		case <-time.After(10 * time.Second):
			t.Fatal("nobody leads")
		}
	}
	if err := leader.Put(t.Context(), Server{ID: "follower", Address: string(follower.LocalAddr())}); err != nil {
		t.Fatal(err)
	}
	propose := func() {
		if err := leader.Barrier(t.Context()); err != nil {
			t.Fatal(err)
		}
	}
	// What the leader finds to do when a refusal comes in is left to chance, hence the many rounds.
	for round := range 20 {
		c := make(chan struct{})
		refuse.Store(&c)
		propose()
		select {
		case <-held:
		case <-time.After(20 * time.Second):
			t.Fatalf("round %d: nothing comes to the follower", round)
		}
		propose()
		propose()
		close(c)
		refuse.Store(nil)
		last := leader.raft.LastIndex()
		for wait := time.After(20 * time.Second); ; {
			select {
			case i := <-taken:
				if i < last {
					continue
				}
			case <-wait:
				t.Fatalf("round %d: the follower does not get entry %d any more", round, last)
			}
			break
		}
	}
	closed := make(chan error, 1)
	go func() { closed <- leader.Close() }()
	select {
	case err := <-closed:
		if err != nil {
			t.Error(err)
		}
	case <-time.After(20 * time.Second):
		t.Fatal("the leader does not end")
	}
	if err := follower.Close(); err != nil {
		t.Error(err)
	}
}
