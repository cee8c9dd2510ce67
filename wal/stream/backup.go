package stream

import (
	"context"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"strconv"
	"strings"

	"github.com/jackc/pgx/v5/pgproto3"

	"everpage/wal/pg"
)

// BackupOptions say how to take a base backup.
type BackupOptions struct {
	Label         string                  // default "everpage base backup"
	MaxRate       int                     // kB/s the server sends at most, 32 to 1048576; 0 is no limit
	SkipChecksums bool                    // don't have the server verify page checksums
	Begin         func(BackupStart) error // called before the first file
	Progress      func(done, total int64) // bytes; called about every MB. total is the server's estimate
	Warn          func(warning string)    // what the server warns of, as blocks with wrong checksums
}

// BackupStart is what is known before the first file.
type BackupStart struct {
	Server      Server        `json:"server"`
	Start       pg.LSN        `json:"start"` // the checkpoint's redo LSN: replay begins here
	Timeline    pg.TimelineID `json:"timeline"`
	Tablespaces []Tablespace  `json:"tablespaces"`
	Total       int64         `json:"total"` // bytes, the server's estimate
}

// BackupResult is a completed base backup.
type BackupResult struct {
	BackupStart
	Label BackupLabel `json:"label"`
	End   pg.LSN      `json:"end"` // the copy is consistent once WAL is replayed up to here
	Files int64       `json:"files"`
	Bytes int64       `json:"bytes"`
}

// Backup takes a base backup without WAL and hands each file to fn as it arrives; nothing is kept in memory or on disk. Tablespaces come
// first, then PGDATA: backup_label before the others, global/pg_control last. Every file is held against the manifest
// that the server sends behind the last one, so a file may still turn out damaged after fn got it: only a returned result is a backup.
//
// The connection must be a replication connection. Backup uses it up: it is closed in every case.
func Backup(ctx context.Context, c *Conn, o BackupOptions, fn func(BackupFile) error) (BackupResult, error) {
	defer c.Close()
	server, err := Identify(ctx, c)
	if err != nil {
		return BackupResult{}, fmt.Errorf("base backup: %w", err)
	}
	if err := server.CheckSource(); err != nil {
		return BackupResult{}, fmt.Errorf("base backup of %s: %w", c.where, err)
	}
	w, err := c.takeOver(ctx)
	if err != nil {
		return BackupResult{}, fmt.Errorf("base backup: %w", err)
	}
	defer w.close()
	b := &backup{w: w, o: o, fn: fn, sums: manifestSums{}}
	b.result.Server = server
	if err := b.run(); err != nil {
		return BackupResult{}, fmt.Errorf("base backup of %s: %w", w.where, err)
	}
	return b.result, nil
}

type backup struct {
	w      *wire
	o      BackupOptions
	fn     func(BackupFile) error
	out    copyOut
	sums   manifestSums
	result BackupResult

	reported int64
	label    bool // backup_label was seen
	control  bool // pg_control was seen
	checked  bool // the manifest was seen
}

// backupCommand is BASE_BACKUP in a major's own syntax: 15 has a list in parentheses.
func backupCommand(major pg.Major, o BackupOptions) string {
	label := o.Label
	if label == "" {
		label = "everpage base backup"
	}
	var opts []string
	if major < 15 {
		opts = append(opts, "LABEL "+quoteLiteral(label), "PROGRESS", "FAST", "NOWAIT", "TABLESPACE_MAP", "MANIFEST 'yes'", "MANIFEST_CHECKSUMS 'CRC32C'")
		if o.SkipChecksums {
			opts = append(opts, "NOVERIFY_CHECKSUMS")
		}
		if o.MaxRate > 0 {
			opts = append(opts, "MAX_RATE "+strconv.Itoa(o.MaxRate))
		}
		return "BASE_BACKUP " + strings.Join(opts, " ")
	}
	opts = append(opts, "LABEL "+quoteLiteral(label), "PROGRESS true", "CHECKPOINT 'fast'", "WAIT false", "MANIFEST 'yes'", "MANIFEST_CHECKSUMS 'CRC32C'")
	if major > 15 {
		// 15 leaves all of pg_tblspc out of base.tar with a map (sendDir), and with it tablespaces that lie right there. Their files come only
		// without; links, which then come too, are skipped. 16 and later send an archive for each.
		opts = append(opts, "TABLESPACE_MAP true")
	}
	if o.SkipChecksums {
		opts = append(opts, "VERIFY_CHECKSUMS false")
	}
	if o.MaxRate > 0 {
		opts = append(opts, "MAX_RATE "+strconv.Itoa(o.MaxRate))
	}
	return "BASE_BACKUP ( " + strings.Join(opts, ", ") + " )"
}

func (b *backup) run() error {
	major := b.result.Server.Major
	if err := b.w.query(backupCommand(major, b.o)); err != nil {
		return err
	}
	order, err := b.header()
	if err != nil {
		return err
	}
	if b.o.Begin != nil {
		if err := b.o.Begin(b.result.BackupStart); err != nil {
			return err
		}
	}
	b.out = copyOut{w: b.w, typed: major >= 15, warn: b.o.Warn}
	for n := 0; ; n++ {
		s, ok, err := b.out.nextSection()
		if err != nil {
			return err
		}
		if !ok {
			break
		}
		switch {
		case s.manifest || major < 15 && n == len(order):
			err = b.sums.verify(&b.out)
			b.checked = true
		case n >= len(order):
			err = fmt.Errorf("%w: more archives than tablespaces", errProtocol)
		case major >= 15 && s.name != archiveName(order[n]):
			err = fmt.Errorf("%w: archive %s where %s is due", errProtocol, s.name, archiveName(order[n]))
		default:
			err = b.archive(order[n])
		}
		if err != nil {
			return err
		}
	}
	if err := b.finish(); err != nil {
		return err
	}
	if !b.label || !b.control || !b.checked {
		return fmt.Errorf("%w: the backup ended without its backup_label, pg_control or manifest", errProtocol)
	}
	b.progress(true)
	return nil
}

// archiveName names a tablespace's archive; 0 is PGDATA.
func archiveName(spc pg.Oid) string {
	if spc == 0 {
		return "base.tar"
	}
	return fmt.Sprintf("%d.tar", spc)
}

// header reads the start position and the tablespaces, in the order of their archives; 0 is PGDATA.
func (b *backup) header() ([]pg.Oid, error) {
	rows, msg, err := b.w.result(2)
	if err != nil {
		return nil, err
	}
	r := &b.result
	if msg != nil {
		return nil, fmt.Errorf("%w %T before the start position", errProtocol, msg)
	}
	if r.Start, r.Timeline, err = position(rows); err != nil {
		return nil, fmt.Errorf("start position: %w", err)
	}
	rows, msg, err = b.w.result(3)
	if err != nil {
		return nil, err
	}
	if msg != nil {
		return nil, fmt.Errorf("%w %T in the list of tablespaces", errProtocol, msg)
	}
	var order []pg.Oid
	for _, row := range rows {
		var oid, size uint64
		if row[0] != "" {
			if oid, err = strconv.ParseUint(row[0], 10, 32); err != nil || oid == 0 {
				return nil, fmt.Errorf("tablespace %q: not an OID", row[0])
			}
		}
		if row[2] != "" {
			if size, err = strconv.ParseUint(row[2], 10, 50); err != nil {
				return nil, fmt.Errorf("tablespace %d: size %q", oid, row[2])
			}
			size <<= 10 // kB
		}
		order = append(order, pg.Oid(oid))
		r.Total += int64(size)
		if oid != 0 {
			r.Tablespaces = append(r.Tablespaces, Tablespace{Oid: pg.Oid(oid), Location: row[1], Size: int64(size)})
		}
	}
	if len(order) == 0 || order[len(order)-1] != 0 {
		return nil, fmt.Errorf("%w: PGDATA is not the last of the tablespaces", errProtocol)
	}
	return order, nil
}

// archive reads the archive of one tablespace.
func (b *backup) archive(spc pg.Oid) error {
	prefix := ""
	if spc != 0 {
		prefix = fmt.Sprintf("pg_tblspc/%d/", spc)
	}
	return readArchive(&b.out, prefix, b.result.Server.Major, b.file)
}

func (b *backup) file(f BackupFile) error {
	sum := &sumReader{r: f.Reader}
	f.Reader = sum
	switch f.Name {
	case "backup_label":
		if err := b.readLabel(&f); err != nil {
			return err
		}
	case "global/pg_control":
		b.control = true
	}
	if err := b.fn(f); err != nil {
		return err
	}
	if _, err := io.Copy(io.Discard, sum); err != nil {
		return fmt.Errorf("%s: %w", f.Name, err)
	}
	if sum.n != f.Size {
		return fmt.Errorf("%s: %d bytes, the archive says %d", f.Name, sum.n, f.Size)
	}
	b.sums.add(f.Name, sum.n, sum.crc)
	b.result.Files++
	b.result.Bytes += f.Size
	b.progress(false)
	return nil
}

// readLabel reads backup_label and puts its bytes back before the reader.
func (b *backup) readLabel(f *BackupFile) error {
	content, err := readSmall(*f)
	if err != nil {
		return err
	}
	l, err := ParseBackupLabel(content)
	if err != nil {
		return err
	}
	if l.Start != b.result.Start || l.Timeline != b.result.Timeline {
		return fmt.Errorf("backup_label says start %s on timeline %d, the server said %s on %d", l.Start, l.Timeline, b.result.Start, b.result.Timeline)
	}
	b.result.Label, b.label = l, true
	f.Reader = strings.NewReader(string(content))
	return nil
}

const progressStep = 1 << 20

func (b *backup) progress(end bool) {
	if b.o.Progress == nil || !end && b.out.bytes-b.reported < progressStep {
		return
	}
	b.reported = b.out.bytes
	b.o.Progress(b.out.bytes, max(b.result.Total, b.out.bytes))
}

// finish reads the end position, behind the last copy.
func (b *backup) finish() error {
	var rows []textRow
	msg := b.out.tail
	if msg != nil {
		if _, ok := msg.(*pgproto3.RowDescription); !ok {
			return fmt.Errorf("%w %T behind the last archive", errProtocol, msg)
		}
	}
	rows, msg, err := b.w.result(2)
	if err != nil {
		if sqlState(err) == "XX001" {
			return fmt.Errorf("%w; the primary has damaged pages (its log names them): repair them, or import without checksum verification", err)
		}
		return err
	}
	if msg != nil {
		return fmt.Errorf("%w %T before the end position", errProtocol, msg)
	}
	var tli pg.TimelineID
	if b.result.End, tli, err = position(rows); err != nil {
		return fmt.Errorf("end position: %w", err)
	}
	if tli != b.result.Timeline || b.result.End < b.result.Start {
		return fmt.Errorf("it ended at %s on timeline %d, but began at %s on %d", b.result.End, tli, b.result.Start, b.result.Timeline)
	}
	for {
		// The command's own end; damaged pages are reported only here.
		msg, err := b.w.receive()
		if err != nil {
			if sqlState(err) == "XX001" {
				return fmt.Errorf("%w; the primary has damaged pages (its log names them): repair them, or import without checksum verification", err)
			}
			return err
		}
		switch msg := msg.(type) {
		case *pgproto3.ReadyForQuery:
			return nil
		case *pgproto3.CommandComplete:
		case *pgproto3.NoticeResponse:
			b.out.notice(msg)
		default:
			return fmt.Errorf("%w %T at the end", errProtocol, msg)
		}
	}
}

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

// sumReader counts and sums what is read.
type sumReader struct {
	r   io.Reader
	n   int64
	crc uint32
}

func (s *sumReader) Read(p []byte) (int, error) {
	n, err := s.r.Read(p)
	s.n += int64(n)
	s.crc = crc32.Update(s.crc, castagnoli, p[:n])
	if err != nil && !errors.Is(err, io.EOF) {
		return n, err
	}
	return n, err
}
