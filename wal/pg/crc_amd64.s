#include "textflag.h"

// func shortCastagnoli(crc uint32, p *byte, n int) uint32
TEXT ·shortCastagnoli(SB), NOSPLIT, $0-28
	MOVL crc+0(FP), AX
	MOVQ p+8(FP), SI
	MOVQ n+16(FP), CX
	NOTL AX

sixteen:
	CMPQ   CX, $16
	JLT    eight
	CRC32Q (SI), AX
	CRC32Q 8(SI), AX
	ADDQ   $16, SI
	SUBQ   $16, CX
	JMP    sixteen

eight:
	TESTQ  $8, CX
	JZ     four
	CRC32Q (SI), AX
	ADDQ   $8, SI

four:
	TESTQ  $4, CX
	JZ     two
	CRC32L (SI), AX
	ADDQ   $4, SI

two:
	TESTQ  $2, CX
	JZ     one
	CRC32W (SI), AX
	ADDQ   $2, SI

one:
	TESTQ  $1, CX
	JZ     done
	CRC32B (SI), AX

done:
	NOTL AX
	MOVL AX, ret+24(FP)
	RET

// func features() (ecx uint32)
TEXT ·features(SB), NOSPLIT, $0-4
	MOVL $1, AX
	XORL CX, CX
	CPUID
	MOVL CX, ecx+0(FP)
	RET
