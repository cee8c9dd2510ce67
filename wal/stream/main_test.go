package stream_test

import (
	"testing"

	"go.uber.org/goleak"
)

// TestMain sees that no test leaves a goroutine behind.
func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }
