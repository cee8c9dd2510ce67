package pgtest

import "context"

// TB is what is used here of testing.TB, declared so that programs that are no tests need not import it.
type TB interface {
	Helper()
	Context() context.Context
	Cleanup(func())
	Errorf(format string, args ...any)
	Fatalf(format string, args ...any)
	Logf(format string, args ...any)
	Failed() bool
}

// New starts a server for a test and ends it with the test. A failed test gets the end of the server's log.
func New(tb TB, cfg Config) *Server {
	tb.Helper()
	s, err := Start(tb.Context(), cfg)
	if err != nil {
		tb.Fatalf("start PostgreSQL: %v", err)
	}
	CloseWith(tb, s)
	return s
}

// CloseWith ends a server with the test.
func CloseWith(tb TB, s *Server) {
	tb.Helper()
	tb.Cleanup(func() {
		if tb.Failed() {
			tb.Logf("log of the server on port %d: %s", s.Port(), s.LogTail())
		}
		if err := s.Close(); err != nil {
			tb.Errorf("close PostgreSQL: %v", err)
		}
	})
}

// MustSQL runs statements like SQL and fails the test on an error.
func (s *Server) MustSQL(tb TB, db string, sql ...string) [][]string {
	tb.Helper()
	rows, err := s.SQL(tb.Context(), db, sql...)
	if err != nil {
		tb.Fatalf("%v", err)
	}
	return rows
}
