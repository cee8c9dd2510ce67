package main

import (
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

func TestMistakesHaveTheirExitCode(t *testing.T) {
	for _, c := range []struct {
		args string
		want int
	}{
		{"frobnicate", exitUsage}, {"page gett", exitUsage}, {"page get base/5/1", exitUsage}, {"page get nowhere 0", exitUsage},
		{"page get base/5/1 minus", exitUsage}, {"page get base/5/1 4294967295", exitUsage}, {"page get base/5/1 0 --fork side", exitUsage},
		{"page get base/5/1 0 --lsn 16", exitUsage}, {"page get base/5/1 0 --lsn 0/0 --server 127.0.0.1:1", exitUsage},
		{"status --nope", exitUsage}, {"-o xml status", exitUsage}, {"serve", exitUsage}, {"wal verify --base x", exitUsage},
		{"lsn --lsn 0/1 --xid 4", exitUsage}, {"status --server 127.0.0.1:1 --timeout 2s", exitUnreachable},
		{"wal dump /nonexistent", exitFailed}, {"version", exitOK}, {"page --help", exitOK},
	} {
		root := newRoot()
		root.SetOut(io.Discard)
		root.SetArgs(strings.Fields(c.args))
		code := exitOK
		err := root.ExecuteContext(t.Context())
		if err != nil {
			code = exitCode(err)
		}
		if code != c.want {
			t.Errorf("everpage %s: exit code %d (%v), want %d", c.args, code, err, c.want)
		}
	}
}

// A flag wins over the environment, which wins over the file.
func TestFlagsEnvironmentAndFile(t *testing.T) {
	file := filepath.Join(t.TempDir(), "everpage.yaml")
	if err := os.WriteFile(file, []byte("server: file:1\ntimeout: 3s\nquiet: true\nspool-keep: 7\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	complete := func(args ...string) (*globals, error) {
		root := newRoot()
		status, _, err := root.Find([]string{"status"})
		if err != nil {
			t.Fatal(err)
		}
		g := &globals{}
		g.flags(status.Flags())
		if err := status.ParseFlags(args); err != nil {
			t.Fatal(err)
		}
		return g, g.complete(status)
	}
	t.Setenv("EVERPAGE_CONFIG", file)
	t.Setenv("EVERPAGE_TIMEOUT", "4s")
	g, err := complete("--server", "flag:1")
	if err != nil {
		t.Fatal(err)
	}
	if g.server != "flag:1" || g.timeout != 4*time.Second || !g.quiet {
		t.Errorf("server %s, timeout %s, quiet %t: want flag:1 of the flag, 4s of the environment, true of the file", g.server, g.timeout, g.quiet)
	}
	if err := os.WriteFile(file, []byte("serverr: typo:1\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := complete(); exitCode(err) != exitUsage || !strings.Contains(err.Error(), `unknown key "serverr"`) {
		t.Errorf("an unknown key in the file: %v", err)
	}
}

func TestTimesAreReadAsTimestamptz(t *testing.T) {
	want := time.Date(2026, 3, 1, 12, 0, 0, 250_000_000, time.UTC)
	for _, s := range []string{"2026-03-01 12:00:00.25+00", "2026-03-01T12:00:00.25Z", "2026-03-01 14:30:00.25+02:30", "2026-03-01 07:00:00.25-0500", "2026-03-01 12:00:00.25 UTC"} {
		if got, err := parseTime(s); err != nil || !got.Equal(want) {
			t.Errorf("%s: %v, %v", s, got, err)
		}
	}
	for _, s := range []string{"", "yesterday", "12:00", "2026-13-01 00:00:00Z"} {
		if got, err := parseTime(s); err == nil {
			t.Errorf("%q was read as %v", s, got)
		}
	}
}
