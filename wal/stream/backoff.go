package stream

import (
	"math/rand/v2"
	"time"
)

// Backoff says how long to wait between attempts to connect.
type Backoff struct {
	Min time.Duration // first wait; default 100 ms
	Max time.Duration // longest wait; default 10 s
}

func (b Backoff) withDefaults() Backoff {
	if b.Min <= 0 {
		b.Min = 100 * time.Millisecond
	}
	if b.Max < b.Min {
		b.Max = max(10*time.Second, b.Min)
	}
	return b
}

// wait is the time before an attempt after n failures in a row, n ≥ 1: it doubles up to Max. random, from 0 to 1, takes up to half of it off, so
// that nodes that lost the same primary do not come back at once.
func (b Backoff) wait(n int, random float64) time.Duration {
	d := b.Min
	for ; n > 1 && d < b.Max; n-- {
		d *= 2
	}
	d = min(d, b.Max)
	return d - time.Duration(random*float64(d)/2)
}

func (b Backoff) next(n int) time.Duration { return b.wait(n, rand.Float64()) }
