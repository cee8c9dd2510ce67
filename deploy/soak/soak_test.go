package main

import (
	"os"
	"testing"
	"time"

	"everpage/deploy/nodetest"
)

// TestSoak is the short form: two minutes, with a retention of twelve seconds.
func TestSoak(t *testing.T) {
	binary, err := nodetest.Build(t.Context(), t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	if err := os.Chmod(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	r, err := soak(t.Context(), options{binary: binary, dir: dir, duration: 2 * time.Minute, retention: 12 * time.Second, seed: uint64(time.Now().UnixNano() % 1_000_000), logf: t.Logf})
	if err != nil {
		t.Fatal(err)
	}
	t.Log(r)
}

func TestPlateau(t *testing.T) {
	var flat, teeth, grows, growing []sample
	for i := range 30 {
		flat = append(flat, sample{local: int64(100 + i%7)})
		teeth = append(teeth, sample{local: int64(100 + 40*(i%5))})
		grows = append(grows, sample{local: int64(100 + 20*i)})
		growing = append(growing, sample{local: int64(20 + 10*i + 40*(i%5))}) // in teeth
	}
	of := func(x sample) int64 { return x.local }
	if p := plateauOf(flat, of); !p.reached() {
		t.Errorf("flat: %s", p)
	}
	if p := plateauOf(teeth, of); !p.reached() {
		t.Errorf("in teeth: %s", p)
	}
	var burst []sample // twice as much of all, with twice the load
	for i := range 30 {
		times := int64(1 + i/20)
		burst = append(burst, sample{local: times * int64(100+i%7), wal: times * int64(50+i%3)})
	}
	if p := plateauOf(burst, of); !p.reached() {
		t.Errorf("with more load: %s", p)
	}
	for i := range growing {
		growing[i].wal = int64(50 + i%3)
	}
	for _, list := range [][]sample{grows, growing} {
		if p := plateauOf(list, of); p.reached() {
			t.Errorf("growing: %s", p)
		}
	}
}
