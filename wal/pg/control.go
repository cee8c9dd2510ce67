package pg

import (
	"encoding/binary"
	"fmt"
	"hash/crc32"
	"math"
)

// ControlFileSize is the size of pg_control in bytes, most of them zero (PG_CONTROL_FILE_SIZE).
const ControlFileSize = 8192

// ChecksumVersion is what DataChecksumVersion says in a cluster with data checksums (PG_DATA_CHECKSUM_VERSION).
const ChecksumVersion = 1

// DBState is the state of a cluster as pg_control tells it.
type DBState uint32

// The states of a cluster.
const (
	DBStartup DBState = iota
	DBShutdowned
	DBShutdownedInRecovery
	DBShutdowning
	DBInCrashRecovery
	DBInArchiveRecovery
	DBInProduction
)

// Offsets in ControlFileData (pg_control.h). 17 differs from its forerunners within CheckPoint only, 18 from the nonce on.
const (
	offCtlSystemID           = 0
	offCtlVersion            = 8
	offCtlCatalogVersion     = 12
	offCtlState              = 16
	offCtlTime               = 24
	offCtlCheckPoint         = 32
	offCtlCheckPointCopy     = 40
	offCtlUnloggedLSN        = 128
	offCtlMinRecovery        = 136
	offCtlMinRecoveryTLI     = 144
	offCtlBackupStart        = 152
	offCtlBackupEnd          = 160
	offCtlBackupEndRequired  = 168
	offCtlWALLevel           = 172
	offCtlWALLogHints        = 176
	offCtlMaxConnections     = 180
	offCtlMaxWorkerProcesses = 184
	offCtlMaxWALSenders      = 188
	offCtlMaxPreparedXacts   = 192
	offCtlMaxLocksPerXact    = 196
	offCtlTrackCommitTs      = 200
	offCtlMaxAlign           = 204
	offCtlFloatFormat        = 208
	offCtlBlockSize          = 216
	offCtlRelSegSize         = 220
	offCtlWALBlockSize       = 224
	offCtlWALSegSize         = 228
	offCtlNameDataLen        = 232
	offCtlIndexMaxKeys       = 236
	offCtlToastChunk         = 240
	offCtlLOBlock            = 244
	offCtlFloat8ByVal        = 248
	offCtlChecksums          = 252
	offCtlNonce              = 256 // 18: default_char_signedness, and the nonce behind it
	nonceSize                = 32
)

// crcOffset is where pg_control's CRC stands: behind the nonce, aligned.
func (m Major) crcOffset() int {
	if m >= 18 {
		return 292
	}
	return 288
}

// ControlFile is the content of global/pg_control. What it lacks is the same in every supported build, and checked on reading.
type ControlFile struct {
	Major                 Major
	SystemID              uint64
	State                 DBState
	Time                  int64 // seconds since 1970
	CheckPoint            LSN   // where the last checkpoint record starts
	Copy                  CheckPoint
	UnloggedLSN           LSN
	MinRecoveryPoint      LSN
	MinRecoveryTimeline   TimelineID
	BackupStart           LSN
	BackupEnd             LSN
	BackupEndRequired     bool
	WALLevel              int32
	WALLogHints           bool
	MaxConnections        int32
	MaxWorkerProcesses    int32
	MaxWALSenders         int32
	MaxPreparedXacts      int32
	MaxLocksPerXact       int32
	TrackCommitTimestamp  bool
	WALSegmentSize        uint32 // bytes
	DataChecksumVersion   uint32 // 0: no data checksums
	DefaultCharSignedness bool   // 18 and later
	MockAuthNonce         [nonceSize]byte
}

// The values of a build that cannot differ on the machines and with the block sizes that are supported.
var controlBuild = []struct {
	offset int
	value  uint32
	name   string
}{
	{offCtlMaxAlign, 8, "maximum alignment"},
	{offCtlBlockSize, BlockSize, "block size"},
	{offCtlRelSegSize, SegmentBlocks, "blocks per segment"},
	{offCtlWALBlockSize, BlockSize, "WAL block size"},
	{offCtlNameDataLen, 64, "maximum length of identifiers"},
	{offCtlIndexMaxKeys, 32, "maximum columns in an index"},
	{offCtlToastChunk, 1996, "maximum size of a TOAST chunk"},
	{offCtlLOBlock, 2048, "size of a large-object chunk"},
}

const controlFloat = 1234567.0 // FLOATFORMAT_VALUE

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

// ReadControl reads the content of pg_control and checks its CRC, its version and that the build is one that is supported.
// Bytes behind the struct don't count, so a backup's short copy is read too.
func ReadControl(b []byte) (ControlFile, error) {
	if len(b) < offCtlNonce {
		return ControlFile{}, fmt.Errorf("pg_control has %d bytes, want %d: the file is cut off", len(b), ControlFileSize)
	}
	le := binary.LittleEndian
	major, err := MajorOfCatalog(le.Uint32(b[offCtlCatalogVersion:]))
	if err != nil {
		return ControlFile{}, fmt.Errorf("pg_control: %w", err)
	}
	if v := le.Uint32(b[offCtlVersion:]); v != major.ControlVersion() {
		return ControlFile{}, fmt.Errorf("pg_control has version %d, want %d for PostgreSQL %d", v, major.ControlVersion(), major)
	}
	end := major.crcOffset()
	if len(b) < end+4 {
		return ControlFile{}, fmt.Errorf("pg_control has %d bytes, want %d: the file is cut off", len(b), ControlFileSize)
	}
	if want, got := le.Uint32(b[end:]), crc32.Checksum(b[:end], castagnoli); got != want {
		return ControlFile{}, fmt.Errorf("pg_control's CRC is %08X, its content's %08X: the file is damaged", want, got)
	}
	for _, f := range controlBuild {
		if v := le.Uint32(b[f.offset:]); v != f.value {
			return ControlFile{}, fmt.Errorf("pg_control: the server was built with a %s of %d, supported is %d", f.name, v, f.value)
		}
	}
	if math.Float64frombits(le.Uint64(b[offCtlFloatFormat:])) != controlFloat || b[offCtlFloat8ByVal] != 1 {
		return ControlFile{}, fmt.Errorf("pg_control: the server keeps floating-point numbers otherwise than a 64-bit little-endian machine does")
	}
	c := ControlFile{
		Major:                major,
		SystemID:             le.Uint64(b[offCtlSystemID:]),
		State:                DBState(le.Uint32(b[offCtlState:])),
		Time:                 int64(le.Uint64(b[offCtlTime:])),
		CheckPoint:           LSN(le.Uint64(b[offCtlCheckPoint:])),
		UnloggedLSN:          LSN(le.Uint64(b[offCtlUnloggedLSN:])),
		MinRecoveryPoint:     LSN(le.Uint64(b[offCtlMinRecovery:])),
		MinRecoveryTimeline:  le.Uint32(b[offCtlMinRecoveryTLI:]),
		BackupStart:          LSN(le.Uint64(b[offCtlBackupStart:])),
		BackupEnd:            LSN(le.Uint64(b[offCtlBackupEnd:])),
		BackupEndRequired:    b[offCtlBackupEndRequired] != 0,
		WALLevel:             int32(le.Uint32(b[offCtlWALLevel:])),
		WALLogHints:          b[offCtlWALLogHints] != 0,
		MaxConnections:       int32(le.Uint32(b[offCtlMaxConnections:])),
		MaxWorkerProcesses:   int32(le.Uint32(b[offCtlMaxWorkerProcesses:])),
		MaxWALSenders:        int32(le.Uint32(b[offCtlMaxWALSenders:])),
		MaxPreparedXacts:     int32(le.Uint32(b[offCtlMaxPreparedXacts:])),
		MaxLocksPerXact:      int32(le.Uint32(b[offCtlMaxLocksPerXact:])),
		TrackCommitTimestamp: b[offCtlTrackCommitTs] != 0,
		WALSegmentSize:       le.Uint32(b[offCtlWALSegSize:]),
		DataChecksumVersion:  le.Uint32(b[offCtlChecksums:]),
	}
	nonce := b[offCtlNonce:]
	if major >= 18 {
		c.DefaultCharSignedness = nonce[0] != 0
		nonce = nonce[1:]
	}
	copy(c.MockAuthNonce[:], nonce)
	if c.Copy, err = DecodeCheckPoint(major, b[offCtlCheckPointCopy:]); err != nil {
		return ControlFile{}, fmt.Errorf("pg_control: %w", err)
	}
	if err := c.validate(); err != nil {
		return ControlFile{}, err
	}
	return c, nil
}

// validate checks what both reading and writing must be sure of.
func (c *ControlFile) validate() error {
	if c.Major < MajorFirst || c.Major > MajorLast {
		return fmt.Errorf("pg_control of PostgreSQL %d: supported are %d to %d", c.Major, MajorFirst, MajorLast)
	}
	if s := c.WALSegmentSize; s < 1<<20 || s > 1<<30 || s&(s-1) != 0 {
		return fmt.Errorf("pg_control: WAL segment size %d is no power of two from 1 MiB to 1 GiB", s)
	}
	if c.DataChecksumVersion > ChecksumVersion {
		return fmt.Errorf("pg_control: data checksum version %d is not known", c.DataChecksumVersion)
	}
	return nil
}

// Encode makes the content of pg_control, ControlFileSize bytes with the CRC. It fails for values that no server writes.
func (c *ControlFile) Encode() ([]byte, error) {
	if err := c.validate(); err != nil {
		return nil, err
	}
	b := make([]byte, ControlFileSize)
	le := binary.LittleEndian
	le.PutUint64(b[offCtlSystemID:], c.SystemID)
	le.PutUint32(b[offCtlVersion:], c.Major.ControlVersion())
	le.PutUint32(b[offCtlCatalogVersion:], c.Major.CatalogVersion())
	le.PutUint32(b[offCtlState:], uint32(c.State))
	le.PutUint64(b[offCtlTime:], uint64(c.Time))
	le.PutUint64(b[offCtlCheckPoint:], uint64(c.CheckPoint))
	copy(b[offCtlCheckPointCopy:], c.Copy.Encode(c.Major))
	le.PutUint64(b[offCtlUnloggedLSN:], uint64(c.UnloggedLSN))
	le.PutUint64(b[offCtlMinRecovery:], uint64(c.MinRecoveryPoint))
	le.PutUint32(b[offCtlMinRecoveryTLI:], c.MinRecoveryTimeline)
	le.PutUint64(b[offCtlBackupStart:], uint64(c.BackupStart))
	le.PutUint64(b[offCtlBackupEnd:], uint64(c.BackupEnd))
	putBool(b, offCtlBackupEndRequired, c.BackupEndRequired)
	le.PutUint32(b[offCtlWALLevel:], uint32(c.WALLevel))
	putBool(b, offCtlWALLogHints, c.WALLogHints)
	le.PutUint32(b[offCtlMaxConnections:], uint32(c.MaxConnections))
	le.PutUint32(b[offCtlMaxWorkerProcesses:], uint32(c.MaxWorkerProcesses))
	le.PutUint32(b[offCtlMaxWALSenders:], uint32(c.MaxWALSenders))
	le.PutUint32(b[offCtlMaxPreparedXacts:], uint32(c.MaxPreparedXacts))
	le.PutUint32(b[offCtlMaxLocksPerXact:], uint32(c.MaxLocksPerXact))
	putBool(b, offCtlTrackCommitTs, c.TrackCommitTimestamp)
	for _, f := range controlBuild {
		le.PutUint32(b[f.offset:], f.value)
	}
	le.PutUint64(b[offCtlFloatFormat:], math.Float64bits(controlFloat))
	le.PutUint32(b[offCtlWALSegSize:], c.WALSegmentSize)
	b[offCtlFloat8ByVal] = 1
	le.PutUint32(b[offCtlChecksums:], c.DataChecksumVersion)
	nonce := b[offCtlNonce:]
	if c.Major >= 18 {
		putBool(b, offCtlNonce, c.DefaultCharSignedness)
		nonce = nonce[1:]
	}
	copy(nonce, c.MockAuthNonce[:])
	end := c.Major.crcOffset()
	le.PutUint32(b[end:], crc32.Checksum(b[:end], castagnoli))
	return b, nil
}

func putBool(b []byte, offset int, v bool) {
	if v {
		b[offset] = 1
	}
}
