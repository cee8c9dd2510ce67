package pg

import (
	"encoding/binary"
	"math/rand/v2"
	"testing"
)

// checksumPlainly follows the definition, one word at a time.
func checksumPlainly(page Page, block BlockNumber) uint16 {
	p := append(Page(nil), page...)
	p.SetStoredChecksum(0)
	sums := checksumSeeds
	step := func(j int, w uint32) {
		v := sums[j] ^ w
		sums[j] = v*16777619 ^ v>>17
	}
	for i := range BlockSize / 4 {
		step(i%32, binary.LittleEndian.Uint32(p[4*i:]))
	}
	var all uint32
	for j := range 32 {
		step(j, 0)
		step(j, 0)
		all ^= sums[j]
	}
	return uint16((all^block)%65535 + 1)
}

func TestChecksumIsItsDefinition(t *testing.T) {
	r := rand.New(rand.NewPCG(1, 2))
	for range 50 {
		p := make(Page, BlockSize)
		for i := range p {
			p[i] = byte(r.Uint32())
		}
		before := string(p)
		block := r.Uint32()
		got, want := Checksum(p, block), checksumPlainly(p, block)
		if got != want {
			t.Fatalf("Checksum = %04X, want %04X", got, want)
		}
		if string(p) != before {
			t.Fatal("Checksum changed the page")
		}
		p.SetStoredChecksum(^p.StoredChecksum())
		if Checksum(p, block) != want {
			t.Fatal("the stored checksum counts")
		}
		p[r.IntN(BlockSize-PageHeaderSize)+PageHeaderSize] ^= 1 << r.IntN(8)
		if Checksum(p, block) == want {
			t.Fatal("a flipped bit does not count")
		}
	}
}

func TestSetChecksumLeavesNewPage(t *testing.T) {
	p := make(Page, BlockSize)
	p.SetChecksum(7)
	if !p.IsZero() {
		t.Fatal("a new page was stamped")
	}
	p.Init(0)
	p.SetChecksum(7)
	if p.StoredChecksum() != checksumPlainly(p, 7) {
		t.Fatal("a page was not stamped")
	}
}

func BenchmarkChecksum(b *testing.B) {
	p := make(Page, BlockSize)
	for i := range p {
		p[i] = byte(i * 31)
	}
	b.SetBytes(BlockSize)
	b.ReportAllocs()
	for b.Loop() {
		Checksum(p, 3)
	}
}
