package main

import (
	"os"
	"path/filepath"
	"testing"
	"time"
)

// What is written to a slow disk takes its time, also below a directory, and is there.
func TestSlowDisk(t *testing.T) {
	behind, mountpoint := t.TempDir(), t.TempDir()
	d, err := mountSlowDisk(behind, mountpoint)
	if err != nil {
		t.Fatal(err)
	}
	defer func() {
		if err := d.close(); err != nil {
			t.Error(err)
		}
	}()
	const delay = 50 * time.Millisecond
	d.delay.Store(int64(delay))
	if err := os.Mkdir(filepath.Join(mountpoint, "below"), 0o755); err != nil {
		t.Fatal(err)
	}
	began := time.Now()
	if err := os.WriteFile(filepath.Join(mountpoint, "below", "file"), []byte("slow"), 0o644); err != nil {
		t.Fatal(err)
	}
	if took := time.Since(began); took < delay {
		t.Errorf("a write took %s, want %s or more", took, delay)
	}
	if b, err := os.ReadFile(filepath.Join(behind, "below", "file")); err != nil || string(b) != "slow" {
		t.Errorf("behind it is %q, error %v", b, err)
	}
}
