package pgtest

import (
	"errors"
	"os"
	"path/filepath"
)

// MakeStandby makes a stopped server one that starts as a standby, of nobody unless its settings name a primary, until it is promoted.
func (s *Server) MakeStandby() error {
	if s.Running() {
		return errors.New("make a standby: the server runs")
	}
	path := filepath.Join(s.data, "standby.signal")
	if err := os.WriteFile(path, nil, 0o600); err != nil {
		return err
	}
	return s.account.own(path)
}
