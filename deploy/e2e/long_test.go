//go:build long

package e2e

import "time"

// The long tests are patient: they run beside others, on machines that are busy.
func init() { patience = 4 * time.Minute }
