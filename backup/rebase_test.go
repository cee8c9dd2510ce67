package backup

import (
	"math/rand/v2"
	"testing"
	"time"

	"everpage/wal/pg"
)

// Over many uploads a shard has few layers, takes no more than about twice what its window needs, and is not written over and over.
func TestLayersStayFew(t *testing.T) {
	seed := uint64(time.Now().UnixNano())
	t.Logf("seed %d", seed)
	r := rand.New(rand.NewPCG(seed, 0))
	for _, window := range []pg.LSN{0, 20_000, 200_000} { // 0: everything is kept
		const base = 1_000_000 // bytes of the pages themselves
		m := &Manifest{}
		var horizon, to pg.LSN
		var uploaded, made int64
		for range 3000 {
			from := to
			to += pg.LSN(1 + r.IntN(1000))
			fresh := int64(to - from) // of versions: as much as WAL
			made += fresh
			if window != 0 && to > window {
				horizon = to - window
			}
			keep, anew := m.next(horizon, maxLayers)
			l := Layer{Hi: to, Delta: true}
			if anew {
				l = Layer{Lo: horizon, Hi: to, Length: base + int64(to-horizon)}
			} else {
				l.Lo = m.Layers[keep-1].Hi
				l.Length = int64(to - l.Lo)
				if l.Lo < horizon {
					t.Fatalf("a delta from %s on, the horizon is %s", l.Lo, horizon)
				}
			}
			m.Layers = append(m.Layers[:keep:keep], l)
			m.Hi = to
			uploaded += l.Length
			if len(m.Layers) > maxLayers {
				t.Fatalf("%d layers", len(m.Layers))
			}
			if need := base + int64(to-horizon); m.Bytes() > 2*need+base {
				t.Fatalf("window %d: the layers take %d, the window needs %d", window, m.Bytes(), need)
			}
		}
		t.Logf("window %d: %d bytes of versions, %d uploaded, %d in %d layers", window, made, uploaded, m.Bytes(), len(m.Layers))
		if most := 12 * (made + base); window != 20_000 && uploaded > most {
			t.Errorf("window %d: %d bytes of versions were uploaded as %d", window, made, uploaded)
		}
	}
}
