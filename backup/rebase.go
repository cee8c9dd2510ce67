package backup

import "everpage/wal/pg"

// How many layers a shard may have, and how many deltas are made one so that it has fewer.
const (
	maxLayers = 24
	minMerged = 8
)

// next says how a shard's layers go on: with a new base in place of all of them, or with a delta behind the first keep of them.
//
// A new base takes the place of the layers when half of what they take lies below the horizon. Where there are just many of them, the newest deltas are
// made one, as long as each is not much larger than those behind it: so what is uploaded grows with the logarithm of the number of layers only.
func (m *Manifest) next(horizon pg.LSN, most int) (keep int, base bool) {
	n := len(m.Layers)
	if n == 0 || m.garbage(horizon) >= m.Bytes()/2 {
		return 0, true
	}
	if n < most {
		return n, false
	}
	var behind int64
	keep = n
	for keep > 1 && m.Layers[keep-1].Lo >= horizon && (n-keep < minMerged || m.Layers[keep-1].Length <= 2*behind) {
		keep--
		behind += m.Layers[keep].Length
	}
	if n-keep < minMerged {
		return 0, true
	}
	return keep, false
}

// garbage is about how many bytes of a shard's layers reads from the horizon on don't need.
func (m *Manifest) garbage(horizon pg.LSN) int64 {
	base := m.Layers[0]
	if horizon <= base.Lo {
		return 0
	}
	var sum, deltas int64
	for _, l := range m.Layers[1:] {
		deltas += l.Length
		if l.Hi <= horizon {
			sum += l.Length
		}
	}
	// The base has versions of its own interval, at the rate of the deltas behind it, if it is not too small for that.
	if base.Hi > base.Lo && m.Hi > base.Hi {
		per := float64(deltas) / float64(m.Hi-base.Hi)
		all := min(per*float64(base.Hi-base.Lo), float64(base.Length)/2)
		sum += int64(all * float64(min(horizon, base.Hi)-base.Lo) / float64(base.Hi-base.Lo))
	}
	return sum
}
