package main

import "testing"

func TestParseRetention(t *testing.T) {
	for _, c := range []struct {
		text           string
		seconds, bytes uint64
		ok             bool
	}{
		{"7d", 7 * 24 * 3600, 0, true}, {"0.5d", 12 * 3600, 0, true}, {"48h", 48 * 3600, 0, true}, {"1m30s", 90, 0, true}, {"1.2s", 2, 0, true},
		{"100GB", 0, 100 << 30, true}, {"1.5MB", 0, 3 << 19, true}, {"2tb", 0, 2 << 40, true}, {"64kB", 0, 64 << 10, true}, {"forever", 0, 0, true},
		{"", 0, 0, false}, {"7", 0, 0, false}, {"0", 0, 0, false}, {"0d", 0, 0, false}, {"-1h", 0, 0, false}, {"-5GB", 0, 0, false}, {"GB", 0, 0, false},
		{"NaNGB", 0, 0, false}, {"1e300TB", 0, 0, false}, {"100ms", 0, 0, false}, {"40000d", 0, 0, false}, {"7 days", 0, 0, false},
	} {
		r, err := parseRetention(c.text)
		if (err == nil) != c.ok || err == nil && (r.Seconds != c.seconds || r.WalBytes != c.bytes) {
			t.Errorf("%q: %v, %v", c.text, r, err)
		}
	}
}
