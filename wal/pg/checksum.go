package pg

import "encoding/binary"

// checksumPrime is the multiplier of FNV-1a.
const checksumPrime = 16777619

// checksumSeeds are the start values of the 32 interleaved sums (checksumBaseOffsets): part of the format.
var checksumSeeds = [32]uint32{
	0x5B1F36E9, 0xB8525960, 0x02AB50AA, 0x1DE66D2A, 0x79FF467A, 0x9BB9F8A3, 0x217E7CD2, 0x83E13D2C,
	0xF8D4474F, 0xE39EB970, 0x42C6AE16, 0x993216FA, 0x7B093B5D, 0x98DAFF3C, 0xF718902A, 0x0B1C9CDB,
	0xE58F764B, 0x187636BC, 0x5D7B3BB1, 0xE73DE7DE, 0x92BEC979, 0xCCA6C0B2, 0x304A0979, 0x85AA43D4,
	0x783125BB, 0x6CA8EAA2, 0xE407EAC6, 0x4B5CFC3E, 0x9FBF8C76, 0x15CA20BE, 0xF2CA9FD3, 0x959BD756,
}

// Checksum computes what pd_checksum of the page must be at this block of its fork, counted over all segments (pg_checksum_page).
// It reads the page only. A new page (IsNew) bears no checksum: it must be written as it is.
func Checksum(page Page, block BlockNumber) uint16 {
	p := (*[BlockSize]byte)(page)
	// The page is 64 rows of 32 words; word j of each row goes into sum j. Eight sums fit the registers, so it is read in four passes,
	// the first row of the first apart: it holds pd_checksum, which counts as zero.
	var first [32]byte
	copy(first[:], p[:32])
	first[offPageChecksum], first[offPageChecksum+1] = 0, 0

	var sum uint32
	for lane := 0; lane < 32; lane += 8 {
		s := (*[8]uint32)(checksumSeeds[lane:])
		s0, s1, s2, s3, s4, s5, s6, s7 := s[0], s[1], s[2], s[3], s[4], s[5], s[6], s[7]
		row := &first
		if lane != 0 {
			row = (*[32]byte)(p[4*lane:])
		}
		for next := 4*lane + 128; ; next += 128 {
			s0 = mix(s0 ^ binary.LittleEndian.Uint32(row[0:]))
			s1 = mix(s1 ^ binary.LittleEndian.Uint32(row[4:]))
			s2 = mix(s2 ^ binary.LittleEndian.Uint32(row[8:]))
			s3 = mix(s3 ^ binary.LittleEndian.Uint32(row[12:]))
			s4 = mix(s4 ^ binary.LittleEndian.Uint32(row[16:]))
			s5 = mix(s5 ^ binary.LittleEndian.Uint32(row[20:]))
			s6 = mix(s6 ^ binary.LittleEndian.Uint32(row[24:]))
			s7 = mix(s7 ^ binary.LittleEndian.Uint32(row[28:]))
			if next >= BlockSize {
				break
			}
			row = (*[32]byte)(p[next:])
		}
		// Two rounds of zeroes mix the last row.
		sum ^= mix(mix(s0)) ^ mix(mix(s1)) ^ mix(mix(s2)) ^ mix(mix(s3)) ^ mix(mix(s4)) ^ mix(mix(s5)) ^ mix(mix(s6)) ^ mix(mix(s7))
	}
	return uint16((sum^block)%65535 + 1)
}

// mix is one FNV-1a step with the high bits shifted back in, after the value was XORed in.
func mix(v uint32) uint32 { return v*checksumPrime ^ v>>17 }

// SetChecksum stamps the page for this block if it is not new (PageSetChecksumInplace).
func (p Page) SetChecksum(block BlockNumber) {
	if !p.IsNew() {
		p.SetStoredChecksum(Checksum(p, block))
	}
}
