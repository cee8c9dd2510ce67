package stream

import (
	"context"
	"errors"
	"fmt"
	"strconv"
	"strings"

	"github.com/jackc/pglogrepl"

	"everpage/wal"
	"everpage/wal/pg"
)

// Server is what a server says about itself.
type Server struct {
	SystemID    uint64          `json:"system_id,string"`
	Timeline    pg.TimelineID   `json:"timeline"`
	Position    pg.LSN          `json:"position"` // end of the WAL it has flushed; on a standby, received or replayed
	Major       pg.Major        `json:"major"`
	Version     string          `json:"version"`
	SegmentSize wal.SegmentSize `json:"wal_segment_size"` // bytes
	InRecovery  bool            `json:"in_recovery"`
	WALLevel    string          `json:"wal_level"`

	FullPageWrites      bool   `json:"full_page_writes"`
	DataChecksums       bool   `json:"data_checksums"`
	WALLogHints         bool   `json:"wal_log_hints"`
	MaxWALSenders       int    `json:"max_wal_senders"`
	MaxReplicationSlots int    `json:"max_replication_slots"`
	MaxSlotWALKeepSize  int64  `json:"max_slot_wal_keep_size"` // bytes, -1 unbounded
	WALKeepSize         int64  `json:"wal_keep_size"`          // bytes
	SynchronousNames    string `json:"synchronous_standby_names"`
	IdleSlotTimeout     string `json:"idle_replication_slot_timeout,omitempty"` // 18 and later
}

// identity reads what every connection checks: IDENTIFY_SYSTEM, segment size, recovery and wal_level.
func identity(ctx context.Context, c *Conn) (Server, error) {
	s := Server{Major: c.major, Version: c.pgc.ParameterStatus("server_version")}
	id, err := pglogrepl.IdentifySystem(ctx, c.pgc)
	if err != nil {
		switch sqlState(err) {
		case codeSyntax, codeProtocolViolation, codeFeatureNotSupported:
			return s, &ConnectError{Kind: ErrPooler, Where: c.where, Err: fmt.Errorf("IDENTIFY_SYSTEM: %w", err), Hint: "connect to PostgreSQL itself: replication does not go through poolers such as pgbouncer"}
		}
		return s, fmt.Errorf("%s: IDENTIFY_SYSTEM: %w", c.where, err)
	}
	if s.SystemID, err = strconv.ParseUint(id.SystemID, 10, 64); err != nil || s.SystemID == 0 {
		return s, fmt.Errorf("%s: system identifier %q is not a number", c.where, id.SystemID)
	}
	s.Timeline, s.Position = pg.TimelineID(id.Timeline), pg.LSN(id.XLogPos)
	return s, s.readBasics(ctx, c)
}

// readBasics reads segment size, recovery and wal_level, over either kind of connection.
func (s *Server) readBasics(ctx context.Context, c *Conn) error {
	r := settingReader{ctx: ctx, c: c}
	segment := r.bytes("wal_segment_size")
	s.InRecovery = r.bool("in_hot_standby")
	s.WALLevel = r.text("wal_level")
	if r.err != nil {
		return fmt.Errorf("%s: %w", c.where, r.err)
	}
	if s.SegmentSize = wal.SegmentSize(segment); int64(s.SegmentSize) != segment || !s.SegmentSize.Valid() {
		return fmt.Errorf("%s: wal_segment_size of %d bytes is no power of two from 1 MB to 1 GB", c.where, segment)
	}
	return nil
}

// Identify asks a server for its identity and for the settings that matter to us. It needs a replication connection.
// A server built with other block sizes than PostgreSQL's own is an error.
func Identify(ctx context.Context, c *Conn) (Server, error) {
	s, err := identity(ctx, c)
	if err != nil {
		return s, err
	}
	return s, s.readSettings(ctx, c)
}

// readSettings reads the settings that matter to us, over either kind of connection.
func (s *Server) readSettings(ctx context.Context, c *Conn) error {
	r := settingReader{ctx: ctx, c: c}
	s.FullPageWrites = r.bool("full_page_writes")
	s.DataChecksums = r.bool("data_checksums")
	s.WALLogHints = r.bool("wal_log_hints")
	s.MaxWALSenders = r.int("max_wal_senders")
	s.MaxReplicationSlots = r.int("max_replication_slots")
	s.MaxSlotWALKeepSize = r.bytes("max_slot_wal_keep_size")
	s.WALKeepSize = r.bytes("wal_keep_size")
	s.SynchronousNames = r.text("synchronous_standby_names")
	if c.major >= 18 {
		s.IdleSlotTimeout = r.text("idle_replication_slot_timeout")
	}
	for name, want := range map[string]int64{"block_size": pg.BlockSize, "wal_block_size": pg.BlockSize, "segment_size": pg.SegmentBlocks * pg.BlockSize} {
		if got := r.bytes(name); r.err == nil && got != want {
			return &ConnectError{Kind: ErrUnsupported, Where: c.where, Err: fmt.Errorf("it was built with %s of %d bytes, not %d", name, got, want)}
		}
	}
	if r.err != nil {
		return fmt.Errorf("%s: %w", c.where, r.err)
	}
	return nil
}

// Why a server cannot be what pages are imported from.
var (
	ErrStandby  = errors.New("server is a standby")
	ErrWALLevel = errors.New("wal_level is minimal")
)

// CheckSource refuses a server that cannot be imported from or followed.
func (s Server) CheckSource() error {
	if s.InRecovery {
		return fmt.Errorf("%w: it cannot be imported from or followed; name the primary, or list all hosts with target_session_attrs=read-write", ErrStandby)
	}
	if s.WALLevel == "minimal" {
		return fmt.Errorf("%w: it leaves changes out of the WAL; set wal_level = replica and restart the server", ErrWALLevel)
	}
	return nil
}

// TimelineHistory fetches a timeline's history file from the server. Timeline 1 has none: its content is empty.
func TimelineHistory(ctx context.Context, c *Conn, tli pg.TimelineID) (wal.History, error) {
	if tli == 1 {
		return wal.History{Timeline: 1}, nil
	}
	row, err := c.row(ctx, fmt.Sprintf("TIMELINE_HISTORY %d", tli), 2)
	if err != nil {
		return wal.History{}, fmt.Errorf("%s: history of timeline %d: %w", c.where, tli, err)
	}
	h, err := wal.ParseHistory(tli, row[1])
	if err != nil {
		return wal.History{}, fmt.Errorf("%s: %w", c.where, err)
	}
	return h, nil
}

// settingReader reads settings until one fails; its first error stays.
type settingReader struct {
	ctx context.Context
	c   *Conn
	err error
}

func (r *settingReader) text(name string) string {
	if r.err != nil {
		return ""
	}
	var v string
	v, r.err = r.c.show(r.ctx, name)
	return v
}

func (r *settingReader) bool(name string) bool {
	v := r.text(name)
	if r.err == nil && v != "on" && v != "off" {
		r.err = fmt.Errorf("setting %s is %q, neither on nor off", name, v)
	}
	return v == "on"
}

func (r *settingReader) int(name string) int {
	v := r.text(name)
	if r.err != nil {
		return 0
	}
	n, err := strconv.Atoi(v)
	if err != nil {
		r.err = fmt.Errorf("setting %s is %q, not a number", name, v)
	}
	return n
}

func (r *settingReader) bytes(name string) int64 {
	v := r.text(name)
	if r.err != nil {
		return 0
	}
	n, err := parseBytes(v)
	if err != nil {
		r.err = fmt.Errorf("setting %s: %w", name, err)
	}
	return n
}

// parseBytes reads a size as SHOW prints it: 16MB, 0, -1, 8192.
func parseBytes(v string) (int64, error) {
	number := strings.TrimRight(v, "kMGTB")
	unit, ok := map[string]int64{"": 1, "B": 1, "kB": 1 << 10, "MB": 1 << 20, "GB": 1 << 30, "TB": 1 << 40}[v[len(number):]]
	n, err := strconv.ParseInt(number, 10, 64)
	if err != nil || !ok || n < -1 || n > 0 && n > (1<<62)/unit {
		return 0, fmt.Errorf("%q is not a size", v)
	}
	if n == -1 {
		return -1, nil
	}
	return n * unit, nil
}
