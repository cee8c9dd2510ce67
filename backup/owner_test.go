package backup

import (
	"context"
	"errors"
	"strings"
	"testing"

	"everpage/backup/store"
)

func ownerOf(s store.Store, id string, former ...string) *Owner {
	return &Owner{Store: s, ID: id, Name: "cluster " + id, Former: func() []string { return former }}
}

// TestOneClusterOwnsAStore: a store is whose claim is the newest, and a cluster that was followed by another one knows it from its next step on.
func TestOneClusterOwnsAStore(t *testing.T) {
	ctx := t.Context()
	s := store.Count(store.NewMemory())
	a, sameCluster := ownerOf(s, "a"), ownerOf(s, "a")
	for _, o := range []*Owner{a, sameCluster, a} {
		if err := o.Check(ctx); err != nil {
			t.Fatal(err)
		}
	}
	before := s.Usage()
	if err := a.Check(ctx); err != nil {
		t.Fatal(err)
	}
	if u := s.Usage(); u.Stats != before.Stats+1 || u.Lists != before.Lists || u.Gets != before.Gets {
		t.Errorf("a check in steady state costs %+v, before %+v", u, before)
	}
	stranger := ownerOf(s, "x")
	if err := stranger.Check(ctx); !errors.Is(err, ErrTaken) || !strings.Contains(err.Error(), "cluster a") {
		t.Fatalf("another cluster's store: %v", err)
	}
	// One node of a goes on alone, under another id; then somebody recovers from the store.
	b := ownerOf(s, "b", "a")
	if err := b.Check(ctx); err != nil {
		t.Fatal(err)
	}
	for _, o := range []*Owner{a, sameCluster, ownerOf(s, "a")} {
		if err := o.Check(ctx); !errors.Is(err, ErrTaken) {
			t.Fatalf("the former cluster goes on writing: %v", err)
		}
	}
	c := ownerOf(s, "c")
	if err := errors.Join(c.Take(ctx), c.Check(ctx), c.Take(ctx)); err != nil {
		t.Fatal(err)
	}
	if err := b.Check(ctx); !errors.Is(err, ErrTaken) {
		t.Fatalf("a cluster that another one was recovered from goes on writing: %v", err)
	}
	if err := ownerOf(s, "b", "a").Check(ctx); !errors.Is(err, ErrTaken) {
		t.Fatalf("and after a restart: %v", err)
	}
}

// TestClaimsAreMadeOnce: two nodes claim at once, and answers are lost.
func TestClaimsAreMadeOnce(t *testing.T) {
	m := store.NewMemory()
	lost := false
	s := &store.Faulty{Store: m, Decide: func(op, _ string) (f store.Fault) {
		if op == "put" && !lost {
			lost = true
			f.After = store.ErrUnavailable
		}
		return f
	}}
	a := ownerOf(s, "a")
	if err := a.Check(t.Context()); !errors.Is(err, store.ErrUnavailable) {
		t.Fatal(err)
	}
	if err := a.Check(t.Context()); err != nil {
		t.Fatal(err)
	}
	n := 0
	if err := m.List(context.Background(), ownerDir, func(store.Info) error { n++; return nil }); err != nil || n != 1 {
		t.Fatalf("%d claims, %v", n, err)
	}
}
