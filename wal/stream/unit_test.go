package stream

import (
	"context"
	"errors"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"everpage/wal"
	"everpage/wal/pg"
)

func TestBackoff(t *testing.T) {
	b := Backoff{Min: 100 * time.Millisecond, Max: time.Second}.withDefaults()
	for n, want := range []time.Duration{1: 100 * time.Millisecond, 2: 200 * time.Millisecond, 3: 400 * time.Millisecond, 4: 800 * time.Millisecond, 5: time.Second, 6: time.Second} {
		if n > 0 && (b.wait(n, 0) != want || b.wait(n, 1) != want/2) {
			t.Errorf("attempt %d: %v to %v, want %v", n, b.wait(n, 1), b.wait(n, 0), want)
		}
	}
	if d := b.wait(1000000, 0); d != time.Second {
		t.Errorf("far attempt: %v", d)
	}
	if b := (Backoff{}).withDefaults(); b.Min != 100*time.Millisecond || b.Max != 10*time.Second {
		t.Errorf("defaults %+v", b)
	}
}

func TestSlotNames(t *testing.T) {
	long := strings.Repeat("x", 60)
	a, err := NodeSlot("main", long+"1")
	b, err2 := NodeSlot("main", long+"2")
	if err != nil || err2 != nil || len(a) != 63 || a == b || checkSlotName(a) != nil {
		t.Errorf("%s and %s: %v, %v", a, b, err, err2)
	}
	if n, err := NodeSlot("Main", "db-1.example"); n != "everpage_main_db_1_example" || err != nil {
		t.Errorf("%s: %v", n, err)
	}
	if n, err := HoldSlot("main"); n != "everpage_main_hold" || err != nil {
		t.Errorf("%s: %v", n, err)
	}
	for _, bad := range []string{"", "A", "a b", "a-b", "a'; DROP", strings.Repeat("a", 64)} {
		if checkSlotName(bad) == nil {
			t.Errorf("%q is a slot's name", bad)
		}
	}
	if sql := DropSlotSQL("a", "b"); sql != "SELECT pg_drop_replication_slot(slot_name) FROM pg_replication_slots WHERE slot_name IN ('a', 'b');" {
		t.Error(sql)
	}
}

func TestParseBytes(t *testing.T) {
	for text, want := range map[string]int64{"16MB": 16 << 20, "1GB": 1 << 30, "0": 0, "-1": -1, "8192": 8192, "512kB": 512 << 10, "2TB": 2 << 40} {
		if got, err := parseBytes(text); got != want || err != nil {
			t.Errorf("%s: %d, %v", text, got, err)
		}
	}
	for _, bad := range []string{"", "MB", "1MBGB", "-2", "9999999999999TB", "1.5GB"} {
		if n, err := parseBytes(bad); err == nil {
			t.Errorf("%q is %d", bad, n)
		}
	}
}

func TestParseBackupLabel(t *testing.T) {
	good := "START WAL LOCATION: 0/2000028 (file 000000030000000000000002)\nCHECKPOINT LOCATION: 0/2000060\nBACKUP METHOD: streamed\nBACKUP FROM: primary\n" +
		"START TIME: 2024-01-01 00:00:00 UTC\nLABEL: a: b\nSTART TIMELINE: 3\n"
	l, err := ParseBackupLabel([]byte(good))
	want := BackupLabel{Start: 0x2000028, StartFile: "000000030000000000000002", Checkpoint: 0x2000060, Method: "streamed", From: "primary", Time: "2024-01-01 00:00:00 UTC", Label: "a: b", Timeline: 3}
	if err != nil || l != want {
		t.Errorf("%+v: %v", l, err)
	}
	for i := range good { // cut anywhere it is an error or, behind the timeline's digit, whole
		if l, err := ParseBackupLabel([]byte(good[:i])); err == nil && i < len(good)-1 {
			t.Errorf("cut at %d: %+v", i, l)
		}
	}
	for _, bad := range []string{strings.Replace(good, "0/2000060", "0/1", 1), strings.Replace(good, "TIMELINE: 3", "TIMELINE: 4", 1), strings.Replace(good, "0/2000028", "x", 1)} {
		if _, err := ParseBackupLabel([]byte(bad)); err == nil {
			t.Errorf("accepted %s", bad)
		}
	}
	if l, err := ParseBackupLabel([]byte(good + "INCREMENTAL FROM LSN: 0/1\n")); err != nil || !l.Incremental {
		t.Errorf("%+v, %v", l, err)
	}
}

func TestParseTablespaceMap(t *testing.T) {
	spaces, err := ParseTablespaceMap([]byte("16384 /a b\n16385 /new\\\nline\\\\x\n"))
	if err != nil || len(spaces) != 2 || spaces[0] != (Tablespace{Oid: 16384, Location: "/a b"}) || spaces[1].Location != "/new\nline\\x" {
		t.Errorf("%+v: %v", spaces, err)
	}
	for _, bad := range []string{"16384\n", "x /a\n", "16384 /a\\", "0 /a\n"} {
		if _, err := ParseTablespaceMap([]byte(bad)); err == nil {
			t.Errorf("accepted %q", bad)
		}
	}
}

func TestManifest(t *testing.T) {
	const text = "{ \"PostgreSQL-Backup-Manifest-Version\": 1,\n\"Files\": [\n" +
		"{ \"Path\": \"a\", \"Size\": 3, \"Last-Modified\": \"x\", \"Checksum-Algorithm\": \"CRC32C\", \"Checksum\": \"b73f4b36\" },\n" +
		"{ \"Encoded-Path\": \"ff\", \"Size\": 0, \"Last-Modified\": \"x\", \"Checksum-Algorithm\": \"CRC32C\", \"Checksum\": \"00000000\" }\n" +
		"],\n\"WAL-Ranges\": [\n{ \"Timeline\": 1, \"Start-LSN\": \"0/2000028\", \"End-LSN\": \"0/2000100\" }\n],\n"
	sum := "f1f2f0e8c9d6e2c1c0e2f6bb3b7d7c34"
	sums := manifestSums{}
	s := &sumReader{r: strings.NewReader("abc")}
	if _, err := io.Copy(io.Discard, s); err != nil {
		t.Fatal(err)
	}
	sums.add("a", s.n, s.crc)
	sums.add("\xff", 0, 0)
	// The files are right, the manifest's own sum is not.
	err := sums.verify(strings.NewReader(text + "\"Manifest-Checksum\": \"" + sum + "\"}\n"))
	if err == nil || !strings.Contains(err.Error(), "manifest: checksum ") {
		t.Fatalf("error %v", err)
	}
	sum = strings.Fields(err.Error())[2]
	sum = strings.TrimSuffix(sum, ",")
	whole := text + "\"Manifest-Checksum\": \"" + sum + "\"}\n"
	if err := sums.verify(strings.NewReader(whole)); err != nil {
		t.Fatal(err)
	}
	for i := range whole[:len(whole)-1] {
		if sums.verify(strings.NewReader(whole[:i])) == nil {
			t.Fatalf("cut at %d: accepted", i)
		}
	}
	sums.add("more", 0, 0)
	if err := sums.verify(strings.NewReader(whole)); err == nil || !strings.Contains(err.Error(), "lists 2 files, 3") {
		t.Fatalf("a file more: %v", err)
	}
	delete(sums, 0)
	damaged := manifestSums{}
	damaged.add("a", 3, s.crc^1)
	damaged.add("\xff", 0, 0)
	if err := damaged.verify(strings.NewReader(whole)); err == nil || !strings.Contains(err.Error(), "damaged on its way") {
		t.Fatalf("a damaged file: %v", err)
	}
}

func TestLocate(t *testing.T) {
	const seg = wal.SegmentSize(1 << 20)
	first := pg.LSN(0x300000)
	history := func(tli pg.TimelineID, parents ...wal.HistoryEntry) wal.History {
		return wal.History{Timeline: tli, Parents: parents}
	}
	at := func(next pg.LSN) Position {
		return Position{Timeline: 1, First: first, Next: next, History: history(1)}
	}
	one := history(1)
	two := func(lsn pg.LSN) wal.History { return history(2, wal.HistoryEntry{Timeline: 1, Switch: lsn}) }
	for _, c := range []struct {
		name string
		pos  Position
		tli  pg.TimelineID
		end  pg.LSN
		h    wal.History
		want origin
		err  error
	}{
		{"nothing held", at(first), 1, first, one, origin{start: first, limit: first}, nil},
		{"inside a page", at(first + 0x2100), 1, first + 0x2100, one, origin{start: first + 0x2000, limit: first + 0x2100}, nil},
		{"at a page's end", at(first + 0x4000), 1, first + 0x9000, one, origin{start: first + 0x2000, limit: first + 0x4000}, nil},
		{"at a segment's end", at(first + 0x100000), 1, first + 0x100000, one, origin{start: first + 0x100000 - 0x2000, limit: first + 0x100000}, nil},
		{"server behind", at(first + 0x2100), 1, first + 0x20F8, one, origin{}, ErrBehind},
		{"promoted ahead", at(first + 0x2100), 2, first + 0x9000, two(first + 0x5000), origin{start: first + 0x2000, limit: first + 0x2100, switched: true, at: first + 0x5000, next: 2}, nil},
		{"promoted behind", at(first + 0x9000), 2, first + 0x9000, two(first + 0x5008), origin{start: first + 0x4000, limit: first + 0x5008, switched: true, at: first + 0x5008, next: 2}, nil},
		{"other ancestors", Position{Timeline: 2, First: first, Next: first, History: two(first)}, 3, first, history(3, wal.HistoryEntry{Timeline: 1, Switch: first + 8}, wal.HistoryEntry{Timeline: 2, Switch: first + 16}), origin{}, ErrTimeline},
		{"not ours", at(first), 3, first, history(3, wal.HistoryEntry{Timeline: 2, Switch: first}), origin{}, ErrTimeline},
		{"same timeline, other parents", at(first), 1, first, history(1, wal.HistoryEntry{Timeline: 1, Switch: 8}), origin{}, ErrTimeline},
		{"server on an older one", Position{Timeline: 2, First: first, Next: first, History: two(first)}, 1, first, one, origin{}, ErrTimeline},
		{"grandchild", at(first + 0x2100), 3, first + 0x9000, history(3, wal.HistoryEntry{Timeline: 1, Switch: first + 0x3000}, wal.HistoryEntry{Timeline: 2, Switch: first + 0x4000}), origin{start: first + 0x2000, limit: first + 0x2100, switched: true, at: first + 0x3000, next: 2}, nil},
	} {
		got, err := locate(c.pos, Server{Timeline: c.tli, Position: c.end}, c.h, seg)
		if !errors.Is(err, c.err) || err == nil && got != c.want {
			t.Errorf("%s: %+v, %v; want %+v, %v", c.name, got, err, c.want, c.err)
		}
	}
	if _, err := locate(Position{Timeline: 1, First: first + 8, Next: first + 8, History: one}, Server{Timeline: 1, Position: first + 16}, one, seg); err == nil {
		t.Error("a position inside a segment was accepted")
	}
}

func TestStatusUpdateKeepsPositions(t *testing.T) {
	b := statusUpdate([3]pg.LSN{0x100000003, 2, 1}, time.Unix(946684800, 5000), true)
	want := "d\x00\x00\x00\x26r" + "\x00\x00\x00\x01\x00\x00\x00\x03" + "\x00\x00\x00\x00\x00\x00\x00\x02" + "\x00\x00\x00\x00\x00\x00\x00\x01" + "\x00\x00\x00\x00\x00\x00\x00\x05" + "\x01"
	if string(b) != want {
		t.Errorf("%q, want %q", b, want)
	}
}

func TestDirectoryRefuses(t *testing.T) {
	make := func(t *testing.T, files map[string]string) string {
		dir := t.TempDir()
		for name, content := range files {
			path := filepath.Join(dir, name)
			if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
				t.Fatal(err)
			}
			if err := os.WriteFile(path, []byte(content), 0o600); err != nil {
				t.Fatal(err)
			}
		}
		if err := os.MkdirAll(filepath.Join(dir, "pg_tblspc"), 0o755); err != nil {
			t.Fatal(err)
		}
		return dir
	}
	control := map[string]string{"PG_VERSION": "15\n", "global/pg_control": "c", "base/5/t3_16384": "temporary", "base/5/16384": "", "base/pgsql_tmp/x": "", "pg_wal/0": "", "base/5/pg_internal.init": ""}
	dir := make(t, control)
	var names []string
	info, err := Directory(context.Background(), dir, func(f BackupFile) error { names = append(names, f.Name); return nil })
	if err != nil || info.Major != 15 || strings.Join(names, " ") != "PG_VERSION base/5/16384 global/pg_control" {
		t.Fatalf("%v, %v", names, err)
	}
	refuse := func(what, want string, change func(dir string) error) {
		t.Helper()
		dir := make(t, control)
		if err := change(dir); err != nil {
			t.Fatal(err)
		}
		_, err := Directory(context.Background(), dir, func(f BackupFile) error { _, err := io.Copy(io.Discard, f); return err })
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v", what, err)
		}
	}
	write := func(name, content string) func(string) error {
		return func(dir string) error { return os.WriteFile(filepath.Join(dir, name), []byte(content), 0o600) }
	}
	refuse("another major", "PG_VERSION", write("PG_VERSION", "13\n"))
	refuse("no control file", "pg_control", func(dir string) error { return os.Remove(filepath.Join(dir, "global/pg_control")) })
	refuse("a damaged label", "backup_label", write("backup_label", "START WAL LOCATION: 0/1\n"))
	refuse("a tablespace that was not unpacked", "tablespace 16400", write("tablespace_map", "16400 /elsewhere\n"))
	refuse("a linked database", "symbolic link", func(dir string) error { return os.Symlink("/tmp", filepath.Join(dir, "base/6")) })
	refuse("a dangling tablespace", "tablespace 16400", func(dir string) error { return os.Symlink("/nowhere", filepath.Join(dir, "pg_tblspc/16400")) })
}

func TestRefused(t *testing.T) {
	for _, err := range []error{ErrDiverged, &SinkError{"flush", &wal.CorruptError{}}, &SinkError{"append", &wal.DivergedError{}}, &ConnectError{Kind: ErrConninfo}} {
		if !Refused(err) {
			t.Errorf("tried again: %v", err)
		}
	}
	for _, err := range []error{ErrStandby, ErrShutdown, ErrSlotActive, &SinkError{"append", io.ErrShortWrite}, &ConnectError{Kind: ErrPassword, Err: io.EOF}, io.EOF} {
		if Refused(err) {
			t.Errorf("not tried again: %v", err)
		}
	}
}

// A primary may have failed over several times: each timeline has its own history.
func TestNextHistory(t *testing.T) {
	h := wal.History{Timeline: 5, Parents: []wal.HistoryEntry{{Timeline: 1, Switch: 100}, {Timeline: 2, Switch: 200}, {Timeline: 4, Switch: 300}}}
	for _, c := range []struct {
		end  EndOfTimeline
		want int // parents, -1: none
	}{
		{EndOfTimeline{Timeline: 1, Switch: 100, Next: 2, History: h}, 1},
		{EndOfTimeline{Timeline: 2, Switch: 200, Next: 4, History: h}, 2},
		{EndOfTimeline{Timeline: 4, Switch: 300, Next: 5, History: h}, 3},
		{EndOfTimeline{Timeline: 2, Switch: 201, Next: 4, History: h}, -1},
		{EndOfTimeline{Timeline: 1, Switch: 100, Next: 3, History: h}, -1},
		{EndOfTimeline{Timeline: 1, Switch: 100, Next: 2}, -1},
	} {
		got, ok := c.end.NextHistory()
		if ok != (c.want >= 0) || ok && (got.Timeline != c.end.Next || len(got.Parents) != c.want) {
			t.Errorf("%+v: %+v, %t", c.end, got, ok)
		}
	}
}
