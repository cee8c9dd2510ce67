//go:build !amd64

package pg

const shortCRC = 0

func shortCastagnoli(uint32, *byte, int) uint32 { panic("not on this processor") }
