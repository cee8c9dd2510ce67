package backup

import (
	"errors"
	"slices"
	"testing"

	"everpage/backup/store"
)

// TestProbe: a probe leaves nothing; what one leaves whose way was cut in the middle is garbage.
func TestProbe(t *testing.T) {
	w, objects, dir := newWorld(t, 3), store.NewMemory(), t.TempDir()
	w.grow(30)
	u, _ := w.uploader(objects, dir)
	if err := u.upload(t.Context()); err != nil {
		t.Fatal(err)
	}
	names := func() (list []string) {
		if err := objects.List(t.Context(), "", func(i store.Info) error { list = append(list, i.Name); return nil }); err != nil {
			t.Fatal(err)
		}
		return list
	}
	before := names()
	if _, err := Probe(t.Context(), objects, "aa11"); err != nil || !slices.Equal(names(), before) {
		t.Errorf("%v; %v", err, names())
	}
	var denied string
	faulty := &store.Faulty{Store: objects, Decide: func(op, _ string) (f store.Fault) {
		if op == denied {
			f.Err = &store.Error{Op: op, Kind: store.ErrAuth, Err: store.ErrInjected}
		}
		return f
	}}
	for _, denied = range []string{"put", "delete"} {
		if _, err := Probe(t.Context(), faulty, "aa11"); !errors.Is(err, store.ErrAuth) {
			t.Errorf("%s is denied: %v", denied, err)
		}
	}
	if len(names()) != len(before)+1 {
		t.Fatalf("%v", names())
	}
	c := collector(t, objects, dir)
	inv, err := TakeInventory(t.Context(), objects, c.Registry, c.Branches(), c.Shards)
	if err != nil || len(inv.Strange) > 0 {
		t.Fatalf("%v, %v", inv, err)
	}
	if _, err := c.Collect(t.Context(), false); err != nil {
		t.Fatal(err)
	}
	if got := names(); slices.ContainsFunc(got, func(n string) bool { return n[:len(probeDir)] == probeDir }) || len(got) > len(before) {
		t.Errorf("it stays: %v", got)
	}
}
