package chunk

import "everpage/wal/pg"

// A writer gathers versions before it puts them into a run: the store's lock is taken once for many, and what a run's table has to be asked for is asked for
// together, so that the processor doesn't wait for memory once a version. A batch that is full is put into the run by a goroutine while the next one fills.

// A batch is full with so many versions or bytes. A value longer than maxGathered is not gathered.
const (
	batchVersions = 256
	batchBytes    = 64 << 10
	maxGathered   = 1 << 10
)

// batch is versions in the order in which they came.
type batch struct {
	puts  []put
	bytes []byte
	err   error // that kept it, or some of it, from the run
	done  int   // so many are in the run

	touched uint32
}

// put is one version of a batch. Its value lies in the batch's bytes, without its checksum.
type put struct {
	p      prefix
	kind   uint8
	lsn    pg.LSN
	hash   uint64
	off, n uint32
}

func (b *batch) reset() { b.puts, b.bytes, b.err, b.done = b.puts[:0], b.bytes[:0], nil, 0 }

func (b *batch) full(most int) bool { return len(b.puts) >= most || len(b.bytes) >= batchBytes }

// add makes room for a value of n bytes.
func (b *batch) add(p *prefix, kind uint8, lsn pg.LSN, n int) []byte {
	off := len(b.bytes)
	if off+n > cap(b.bytes) {
		b.bytes = append(make([]byte, 0, max(2*cap(b.bytes), off+n, 4<<10)), b.bytes...)
	}
	b.bytes = b.bytes[:off+n]
	b.puts = append(b.puts, put{p: *p, kind: kind, lsn: lsn, hash: p.hash(), off: uint32(off), n: uint32(n)})
	return b.bytes[off:]
}

// apply puts a batch into the branch's run.
func (s *Store) apply(br *branchState, b *batch) error {
	var key [keyLen]byte
	s.mu.Lock()
	defer s.mu.Unlock()
	b.touched ^= s.active.touch(b.puts)
	for ; b.done < len(b.puts); b.done++ {
		v := &b.puts[b.done]
		run, err := s.room(br, v.lsn)
		if err != nil {
			return err
		}
		dst, ref := run.alloc(int(v.n) + valueTail)
		copy(dst, b.bytes[v.off:v.off+v.n])
		seal(v.p.appendKey(key[:0], v.lsn), dst)
		run.push(&v.p, v.hash, v.kind, v.lsn, ref)
	}
	return nil
}

// touch asks for the memory that these versions' objects are found by.
func (r *run) touch(puts []put) (x uint32) {
	var found [batchVersions]uint32
	for i := range puts {
		t := r.table(&puts[i].p)
		found[i] = t.buckets[puts[i].hash&uint64(len(t.buckets)-1)].Load()
	}
	for i := range puts {
		if n := found[i]; n != 0 {
			x ^= r.table(&puts[i].p).node(n).chain
		}
	}
	return x
}

// batches is a writer's way to the run: while one is filled, a goroutine may put the one before there.
type batches struct {
	filling, spare *batch
	under          *batch // the goroutine's; nil: there is none
	done           chan struct{}
}

func newBatches() batches {
	return batches{filling: &batch{}, spare: &batch{}, done: make(chan struct{}, 1)}
}

// hand puts a full batch into the run while the next one is filled.
func (w *Writer) hand() error {
	if err := w.back(); err != nil {
		return err
	}
	b := w.filling
	w.filling, w.spare, w.under = w.spare, nil, b
	go func() {
		b.err = w.s.apply(w.b, b)
		w.done <- struct{}{}
	}()
	return nil
}

// back waits for the batch that is under way.
func (w *Writer) back() error {
	b := w.under
	if b == nil {
		return nil
	}
	<-w.done
	w.under, w.spare = nil, b
	if b.err != nil {
		w.lost(b)
		return w.fail(b.err)
	}
	b.reset()
	return nil
}

// gathered puts all that was gathered into the run: what the writer reads of the store has it then, and what it commits.
func (w *Writer) gathered() error {
	if err := w.back(); err != nil {
		return err
	}
	b := w.filling
	if len(b.puts) == 0 {
		return nil
	}
	if err := w.s.apply(w.b, b); err != nil {
		return w.fail(err)
	}
	b.reset()
	return nil
}

// end gives up what is not in the run yet.
func (w *Writer) end() {
	_ = w.back() // the writer is closed; if it failed, that was told or is of what was not committed
	w.lost(w.filling)
}

// lost makes the size cache forget what a batch says of sizes: it must not know what the store does not.
func (w *Writer) lost(b *batch) {
	w.b.mu.Lock()
	defer w.b.mu.Unlock()
	for i := range b.puts {
		w.forget(&b.puts[i].p)
	}
}
