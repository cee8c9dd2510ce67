package chunk

import (
	"sync"
	"sync/atomic"
)

// runMemory keeps what runs that have left lay in, for those to come: fresh memory must be zeroed and its pages faulted in, 32 MiB of it many times a second.
// The last reader of a run gives it back (see Store.leave).
type runMemory struct {
	mu      sync.Mutex
	limit   int64 // bytes that are kept at most; what is given back beyond it is the collector's
	kept    int64
	values  [][]byte
	entries []*[entrySlab]entry
	nodes   []*[nodeSlab]node
	buckets [][]atomic.Uint32
}

const (
	entrySlabBytes = entrySlab * 32
	nodeSlabBytes  = nodeSlab * 40
)

func newRunMemory(runBytes int64) *runMemory { return &runMemory{limit: runBytes + runBytes/2} }

// pop takes the last of a list, which has nothing for a nil.
func pop[T any](list *[]T) (v T, ok bool) {
	n := len(*list) - 1
	if n < 0 {
		return v, false
	}
	v = (*list)[n]
	var none T
	(*list)[n] = none
	*list = (*list)[:n]
	return v, true
}

// value is a slab of n bytes, whose content is undefined.
func (m *runMemory) value(n int) []byte {
	m.mu.Lock()
	defer m.mu.Unlock()
	if b, ok := pop(&m.values); ok {
		m.kept -= int64(n)
		return b
	}
	return make([]byte, n)
}

// entry is a slab of entries, whose content is undefined.
func (m *runMemory) entry() *[entrySlab]entry {
	m.mu.Lock()
	defer m.mu.Unlock()
	if b, ok := pop(&m.entries); ok {
		m.kept -= entrySlabBytes
		return b
	}
	return new([entrySlab]entry)
}

// node is a slab of nodes, whose content is undefined.
func (m *runMemory) node() *[nodeSlab]node {
	m.mu.Lock()
	defer m.mu.Unlock()
	if b, ok := pop(&m.nodes); ok {
		m.kept -= nodeSlabBytes
		return b
	}
	return new([nodeSlab]node)
}

// bucket is n buckets that are empty. A store's runs have tables of two sizes.
func (m *runMemory) bucket(n int) []atomic.Uint32 {
	m.mu.Lock()
	defer m.mu.Unlock()
	for i, b := range m.buckets {
		if len(b) == n {
			last, _ := pop(&m.buckets)
			if i < len(m.buckets) {
				m.buckets[i] = last
			}
			m.kept -= int64(4 * n)
			clear(b)
			return b
		}
	}
	return make([]atomic.Uint32, n)
}

// give takes the memory of a run that nobody looks at any more.
func (m *runMemory) give(r *run) {
	m.mu.Lock()
	defer m.mu.Unlock()
	room := func(bytes int) bool {
		if m.kept+int64(bytes) > m.limit {
			return false
		}
		m.kept += int64(bytes)
		return true
	}
	// The run loses all of it, so that whoever looks at it against the rules fails, and reads nothing that is another run's.
	for _, t := range []*table{&r.pages, &r.small} {
		if room(4 * len(t.buckets)) {
			m.buckets = append(m.buckets, t.buckets)
		}
		t.buckets = nil
		for i := 0; i < maxNodeSlabs && t.nodes[i] != nil; i++ {
			if room(nodeSlabBytes) {
				m.nodes = append(m.nodes, t.nodes[i])
			}
			t.nodes[i] = nil
		}
	}
	for i := 0; i < maxEntrySlabs && r.entries[i] != nil; i++ {
		if room(entrySlabBytes) {
			m.entries = append(m.entries, r.entries[i])
		}
		r.entries[i] = nil
	}
	for i, b := range r.slabs[:r.nslabs] {
		if len(b) == r.slabBytes && room(len(b)) {
			m.values = append(m.values, b)
		}
		r.slabs[i] = nil
	}
	r.free = nil
}
