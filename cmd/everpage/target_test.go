package main

import (
	"testing"
	"time"

	"everpage/wal/pg"
)

func TestParseTime(t *testing.T) {
	local := time.Local
	defer func() { time.Local = local }()
	time.Local = time.FixedZone("east", 5*3600)
	noon := time.Date(2026, 3, 1, 12, 0, 0, 0, time.UTC)
	for text, want := range map[string]time.Time{
		"2026-03-01 12:00:00+00":           noon,
		"2026-03-01 12:00:00.250001+00":    noon.Add(250001 * time.Microsecond),
		"2026-03-01 12:00:00 +00":          noon,
		"2026-03-01 12:00:00 +00:00":       noon,
		"2026-03-01T12:00:00Z":             noon,
		"2026-03-01t12:00:00z":             noon,
		"2026-03-01 12:00:00 Z":            noon,
		"2026-03-01 12:00:00 UTC":          noon,
		"2026-03-01 12:00:00 GMT":          noon,
		"2026-03-01 12:00+00":              noon,
		"2026-03-01 12:00Z":                noon,
		"2026-03-01 17:30:00+0530":         noon,
		"2026-03-01 17:30:00+05:30":        noon,
		"2026-03-01 04:00:00-08":           noon,
		"2026-03-01 17:00:00":              noon, // local
		"2026-03-01 17:00":                 noon,
		"2026-03-01":                       noon.Add(-17 * time.Hour),
		"2026-03-01T12:00:00.999999+00:00": noon.Add(999999 * time.Microsecond),
	} {
		got, err := parseTime(text)
		if err != nil || !got.Equal(want) {
			t.Errorf("%q is %v, %v; want %v", text, got, err, want)
		}
		if err == nil && pg.TimestampOf(got).Time().Sub(want) != 0 {
			t.Errorf("%q loses %v as a timestamp", text, pg.TimestampOf(got).Time().Sub(want))
		}
	}
	for _, text := range []string{"", "yesterday", "12:00", "2026-03-01 12:00:00 Europe/Berlin", "2026-13-01", "2026-03-01 25:00:00+00"} {
		if got, err := parseTime(text); err == nil {
			t.Errorf("%q was read as %v", text, got)
		}
	}
}

func TestShellQuote(t *testing.T) {
	for path, want := range map[string]string{"/srv/a-1": "/srv/a-1", "/srv/a b": "'/srv/a b'", "/it's": `'/it'\''s'`, "/$x": "'/$x'"} {
		if got := shellQuote(path); got != want {
			t.Errorf("%s: %s, want %s", path, got, want)
		}
	}
}
