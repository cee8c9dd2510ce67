package store_test

import (
	"bytes"
	"context"
	"errors"
	"math/rand/v2"
	"testing"
	"testing/synctest"
	"time"

	"everpage/backup/store"
)

func TestPatientConforms(t *testing.T) {
	conform(t, &store.Patient{Store: store.NewMemory(), Least: time.Millisecond, Most: time.Millisecond})
}

// TestPatientMends: whatever fails for a while, each call ends with what a store that never fails would have said.
func TestPatientMends(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		const seed = 5
		t.Logf("seed %d", seed)
		random := rand.New(rand.NewPCG(seed, 0))
		down := &store.Error{Kind: store.ErrUnavailable, Err: store.ErrInjected}
		memory := store.NewMemory()
		told := 0
		s := &store.Patient{Told: func(error, time.Duration) { told++ }, Store: &store.Faulty{Store: memory, Decide: func(string, string) store.Fault {
			switch random.IntN(6) {
			case 0, 1:
				return store.Fault{Err: down}
			case 2:
				return store.Fault{After: down, Truncate: true}
			case 3:
				return store.Fault{Truncate: true}
			}
			return store.Fault{}
		}}}
		body := bytes.Repeat([]byte("page"), 5000)
		names := []string{"a/1", "a/2", "a/3"}
		for _, name := range names {
			if err := s.Put(t.Context(), name, store.Bytes(body)); err != nil && !errors.Is(err, store.ErrExists) {
				t.Fatal(err)
			}
		}
		for range 40 {
			for _, name := range names {
				from := random.Int64N(int64(len(body)))
				length := random.Int64N(int64(len(body))-from) + 1
				if got, err := store.ReadAll(t.Context(), s, name, from, length); err != nil || !bytes.Equal(got, body[from:from+length]) {
					t.Fatalf("%s from %d: %d bytes, %v", name, from, len(got), err)
				}
				if got, err := store.ReadAll(t.Context(), s, name, from, -1); err != nil || !bytes.Equal(got, body[from:]) {
					t.Fatalf("the rest of %s from %d: %d bytes, %v", name, from, len(got), err)
				}
				if i, err := s.Stat(t.Context(), name); err != nil || i.Size != int64(len(body)) {
					t.Fatalf("stat: %+v, %v", i, err)
				}
			}
			var listed []string
			if err := s.List(t.Context(), "a/", func(i store.Info) error { listed = append(listed, i.Name); return nil }); err != nil || len(listed) != len(names) {
				t.Fatalf("list: %v, %v", listed, err)
			}
		}
		if err := s.Delete(t.Context(), names[0]); err != nil {
			t.Fatal(err)
		}
		if _, err := s.Get(t.Context(), names[0], 0, -1); !errors.Is(err, store.ErrNotExist) {
			t.Errorf("what was deleted: %v", err) // at once: waiting does not bring it back
		}
		if told == 0 {
			t.Error("nothing was told of the faults")
		}
	})
}

// TestPatientEnds: with its bound, with its context, and at once for what does not pass.
func TestPatientEnds(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		calls := 0
		fail := error(&store.Error{Kind: store.ErrUnavailable})
		s := &store.Patient{For: time.Minute, Store: &store.Faulty{Store: store.NewMemory(), Decide: func(string, string) store.Fault {
			calls++
			return store.Fault{Err: fail}
		}}}
		began := time.Now()
		if _, err := s.Stat(t.Context(), "x"); !errors.Is(err, store.ErrUnavailable) || calls < 5 || time.Since(began) > time.Minute || time.Since(began) < 30*time.Second {
			t.Errorf("after %s and %d calls: %v", time.Since(began), calls, err)
		}
		s.For = 0
		ctx, cancel := context.WithTimeout(t.Context(), time.Hour)
		defer cancel()
		if _, err := s.Stat(ctx, "x"); !errors.Is(err, store.ErrUnavailable) || ctx.Err() == nil {
			t.Errorf("with its context: %v", err)
		}
		for _, kind := range []error{store.ErrNotExist, store.ErrExists, store.ErrCorrupt, store.ErrName} {
			calls, fail = 0, &store.Error{Kind: kind}
			if _, err := s.Stat(t.Context(), "x"); !errors.Is(err, kind) || calls != 1 {
				t.Errorf("%d calls: %v", calls, err)
			}
		}
		calls, fail = 0, errors.New("not the store's")
		if _, err := s.Stat(t.Context(), "x"); err != fail || calls != 1 {
			t.Errorf("%d calls: %v", calls, err)
		}
	})
}
