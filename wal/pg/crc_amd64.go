package pg

// shortCastagnoli is crc32.Update of n bytes from p on, by the processor's instruction.
//
//go:noescape
func shortCastagnoli(crc uint32, p *byte, n int) uint32

// features is what CPUID tells of the processor in ECX of leaf 1.
func features() (ecx uint32)

// shortCRC is the longest input for which shortCastagnoli is faster than the library, which works on three parts at once where there is enough.
var shortCRC = func() int {
	const sse42 = 1 << 20
	if features()&sse42 != 0 {
		return 512
	}
	return 0
}()
