package pg

import "hash/crc32"

// CRC32C adds b to a CRC-32C, which is 0 at first, as crc32.Update does. Most records and versions are short, and on short input the library is much
// slower: it takes the bytes that fill no word one by one.
func CRC32C(crc uint32, b []byte) uint32 {
	if n := len(b); n > 0 && n <= shortCRC {
		return shortCastagnoli(crc, &b[0], n)
	}
	return crc32.Update(crc, castagnoli, b)
}
