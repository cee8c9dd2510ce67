package pgtest

import (
	"context"
	"fmt"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
)

// Client runs a client program of DefaultMajor (psql, pgbench, pg_amcheck, pg_dump, …) against the server and returns
// what it printed. The connection is given as its environment.
func (s *Server) Client(ctx context.Context, program string, args ...string) (string, error) {
	return s.client(ctx, "", program, args...)
}

func (s *Server) client(ctx context.Context, stdin, program string, args ...string) (string, error) {
	cmd := exec.CommandContext(ctx, filepath.Join(s.clients, program), args...)
	cmd.Dir = "/"
	cmd.Env = append(childEnv("/"), "PGHOST="+s.sockets, "PGPORT="+strconv.Itoa(s.port), "PGUSER=postgres", "PGDATABASE=postgres")
	cmd.Stdin = strings.NewReader(stdin)
	var stdout, stderr strings.Builder
	cmd.Stdout, cmd.Stderr = &stdout, &stderr
	if err := cmd.Run(); err != nil {
		return stdout.String(), fmt.Errorf("%s %s: %w: %s", program, strings.Join(args, " "), err, abbreviate(stderr.String()))
	}
	return stdout.String(), nil
}

// Pgbench runs pgbench against database postgres and returns its report.
func (s *Server) Pgbench(ctx context.Context, args ...string) (string, error) {
	return s.Client(ctx, "pgbench", args...)
}

// Psql runs a script with psql, variables given by -v, until its first error. It returns the rows, unaligned and
// without headers.
func (s *Server) Psql(ctx context.Context, db, script string, vars map[string]string) (string, error) {
	args := []string{"-X", "-q", "-A", "-t", "-v", "ON_ERROR_STOP=1"}
	for _, name := range sortedKeys(vars) {
		args = append(args, "-v", name+"="+vars[name])
	}
	return s.client(ctx, script, "psql", append(args, "-d", db, "-f", "-")...)
}

// Amcheck runs pg_amcheck over all databases, every index against its table. The extension amcheck is installed where
// it is missing, which writes.
func (s *Server) Amcheck(ctx context.Context) (string, error) {
	return s.Client(ctx, "pg_amcheck", "--all", "--install-missing", "--heapallindexed")
}

// Controldata returns what pg_controldata prints, by its labels. Only DefaultMajor's has a client that reads it.
func (s *Server) Controldata(ctx context.Context) (map[string]string, error) {
	if s.cfg.Major != DefaultMajor {
		return nil, fmt.Errorf("pg_controldata is there for %d only, the server is %d: use the pg_control_* functions", DefaultMajor, s.cfg.Major)
	}
	cmd := s.serverCommand(ctx, filepath.Join(s.clients, "pg_controldata"), "-D", s.data)
	out, err := cmd.Output()
	if err != nil {
		return nil, fmt.Errorf("%s: %w", strings.Join(cmd.Args, " "), err)
	}
	values := map[string]string{}
	for _, line := range strings.Split(string(out), "\n") {
		if label, value, ok := strings.Cut(line, ":"); ok {
			values[label] = strings.TrimSpace(value)
		}
	}
	return values, nil
}
