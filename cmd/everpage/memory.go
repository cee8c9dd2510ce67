package main

import (
	"os"
	"runtime/debug"
)

// limitMemory makes the garbage collector work harder near the limit. GOMEMLIMIT, where someone set it, stands.
func limitMemory(bytes int64) {
	if os.Getenv("GOMEMLIMIT") == "" && bytes > 0 {
		debug.SetMemoryLimit(bytes)
	}
}
