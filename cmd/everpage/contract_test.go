package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"path/filepath"
	"strings"
	"testing"

	"github.com/spf13/cobra"

	"everpage/chunk/verify"
	"everpage/pageapi"
	"everpage/pageapi/datadir"
)

// leaves are the commands that do something.
func leaves(c *cobra.Command) (out []*cobra.Command) {
	for _, sub := range c.Commands() {
		if sub.Name() == "help" || sub.Name() == "completion" {
			continue
		}
		if sub.HasSubCommands() {
			out = append(out, leaves(sub)...)
			continue
		}
		out = append(out, sub)
	}
	return out
}

// Every command says what it does, shows how, and the example is one that it takes.
func TestEveryCommandHasExamples(t *testing.T) {
	for _, c := range leaves(newRoot()) {
		if c.Short == "" || c.Example == "" {
			t.Errorf("%s: short %q, example %q", c.CommandPath(), c.Short, c.Example)
		}
		for line := range strings.Lines(c.Example) {
			if !strings.HasPrefix(strings.TrimSpace(line), c.CommandPath()) {
				t.Errorf("%s has the example %q", c.CommandPath(), line)
			}
		}
	}
}

// invoke is the exit code of a command line.
func invoke(t *testing.T, ctx context.Context, args ...string) (int, error) {
	t.Helper()
	root := newRoot()
	root.SetOut(io.Discard)
	root.SetErr(io.Discard)
	root.SetArgs(args)
	err := root.ExecuteContext(ctx)
	if err == nil {
		return exitOK, nil
	}
	return exitCode(err), err
}

// Every command that asks a node says that it is not there, by the same exit code, and names it.
func TestUnreachable(t *testing.T) {
	args := map[string][]string{
		"attach": {"host=127.0.0.1"}, "page get": {"base/5/1", "0"}, "page history": {"base/5/1", "0"}, "rel size": {"base/5/1"}, "restore": {filepath.Join(t.TempDir(), "d")},
		"retention set": {"7d"}, "node drain": {"node2"}, "node remove": {"node2"}, "shard move": {"1", "node2"}, "chunk show": {"base/5/1"}, "chunk move": {"base/5/1", "node2"},
		"cluster set": {"replicas", "2"},
	}
	for _, c := range leaves(newRoot()) {
		path := strings.TrimPrefix(c.CommandPath(), "everpage ")
		switch path {
		case "serve", "node survive", "version", "wal dump", "wal verify", "bench ingest":
			continue
		}
		for _, output := range []string{"table", "json"} {
			line := append(strings.Fields(path), args[path]...)
			code, err := invoke(t, t.Context(), append(line, "--server", "127.0.0.1:1", "--timeout", "2s", "-o", output)...)
			if code != exitUnreachable || !strings.Contains(err.Error(), "127.0.0.1:1") {
				t.Errorf("everpage %s: exit code %d, %v", path, code, err)
			}
		}
	}
}

func TestServersThatAreNone(t *testing.T) {
	for _, server := range []string{"", ",", "nohost", "127.0.0.1", "127.0.0.1:", "127.0.0.1:port", "[::1]"} {
		if code, err := invoke(t, t.Context(), "info", "--timeout", "2s", "--server", server); code != exitUsage {
			t.Errorf("--server %q: exit code %d, %v", server, code, err)
		}
	}
	for _, timeout := range []string{"0s", "-1s"} {
		if code, err := invoke(t, t.Context(), "info", "--timeout", timeout, "--server", "127.0.0.1:1"); code != exitUsage {
			t.Errorf("--timeout %s: exit code %d, %v", timeout, code, err)
		}
	}
}

// Ctrl-C is no node's fault.
func TestInterrupted(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	for _, args := range []string{"info", "verify", "check", "page get base/5/1 0", "restore " + filepath.Join(t.TempDir(), "d")} {
		_, err := invoke(t, ctx, append(strings.Fields(args), "--server", "127.0.0.1:1")...)
		if err = ended(ctx, err); err == nil || err.Error() != "interrupted" || exitCode(err) != exitFailed {
			t.Errorf("everpage %s: %v, exit code %d", args, err, exitCode(err))
		}
	}
	for _, err := range []error{&datadir.IncompleteError{Dir: "/x", Err: errors.New("interrupted")}, pageapi.Errorf(pageapi.NotFound, "no such thing"), fmt.Errorf("disk full")} {
		if got := ended(ctx, err); got != err {
			t.Errorf("%v became %v", err, got)
		}
		if got := ended(t.Context(), err); got != err {
			t.Errorf("%v became %v", err, got)
		}
	}
}

// Whatever makes a verification fail is counted in what it says.
func TestVerdict(t *testing.T) {
	if err := verdict(&verify.Report{}); err != nil {
		t.Error(err)
	}
	for name, r := range map[string]*verify.Report{
		"mismatch": {Mismatches: 7}, "damaged": {Damaged: 7}, "base": {DamagedInBase: make([]string, 7)}, "invariants": {Violations: make([]string, 7)}, "unknown": {Unknown: make([]string, 7)},
	} {
		if err := verdict(r); exitCode(err) != exitVerify || !strings.Contains(err.Error(), "7 ") {
			t.Errorf("%s: %v", name, err)
		}
	}
}
