package pg

import (
	"fmt"
	"hash/crc32"
	"math/rand/v2"
	"testing"
)

func TestCRC32C(t *testing.T) {
	rng := rand.New(rand.NewPCG(1, 2))
	b := make([]byte, 2000)
	for i := range b {
		b[i] = byte(rng.Uint32())
	}
	for n := range 700 {
		for off := range 9 {
			crc := rng.Uint32()
			if got, want := CRC32C(crc, b[off:off+n]), crc32.Update(crc, castagnoli, b[off:off+n]); got != want {
				t.Fatalf("of %d bytes at offset %d: %08X, want %08X", n, off, got, want)
			}
		}
	}
	if got, want := CRC32C(7, b), crc32.Update(7, castagnoli, b); got != want {
		t.Fatalf("of %d bytes: %08X, want %08X", len(b), got, want)
	}
}

func BenchmarkCRC32C(b *testing.B) {
	data := make([]byte, 200)
	for _, n := range []int{20, 55, 110, 200} {
		b.Run(fmt.Sprint(n), func(b *testing.B) {
			crc := uint32(0)
			for range b.N {
				crc = CRC32C(crc, data[:n])
			}
		})
		b.Run(fmt.Sprint(n, "/library"), func(b *testing.B) {
			crc := uint32(0)
			for range b.N {
				crc = crc32.Update(crc, castagnoli, data[:n])
			}
		})
	}
}
