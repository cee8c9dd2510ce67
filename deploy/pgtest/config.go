// Package pgtest runs real PostgreSQL servers for tests, the demo and the benchmark: stock binaries of majors 14 to 18,
// as an unprivileged user, on the loopback address and a socket directory of their own, with nothing left behind.
package pgtest

import (
	"fmt"
	"maps"
	"sort"
	"strings"
	"time"
)

// DefaultMajor is the major of a Config that names none. It is also the one whose client programs are used with every
// server.
const DefaultMajor = 15

// Config describes a server. The zero value is a DefaultMajor server in a temporary directory.
type Config struct {
	// Major is the PostgreSQL major, 14 to 18.
	Major int
	// Dir holds the server's data directory (Dir/data) and log (Dir/postgres.log). Empty means a temporary directory
	// that Close removes.
	Dir string
	// Settings are written to postgresql.conf by Start, so base backups and copies carry them, and handed to the server
	// as arguments by Open. They go before those that every server here gets (see baseSettings).
	Settings map[string]string
	// InitdbArgs are added to initdb's, for example --data-checksums or --wal-segsize=1.
	InitdbArgs []string
	// HBA lines are put before the "trust" lines of pg_hba.conf, for roles that must give a password.
	HBA []string
	// Port is the TCP port on 127.0.0.1. 0 means a free one, the same at every start while it stays free.
	Port int
	// Args are added to the server's command line at every start. They are not part of the data directory.
	Args []string
	// ReadyTimeout bounds a start until connections are accepted. 0 means a minute.
	ReadyTimeout time.Duration
}

func (c Config) withDefaults() Config {
	if c.Major == 0 {
		c.Major = DefaultMajor
	}
	if c.ReadyTimeout == 0 {
		c.ReadyTimeout = time.Minute
	}
	return c
}

// baseSettings make a server cheap and quiet. fsync is off: what is tested is what the server writes, and a killed
// process loses nothing that it handed to the kernel. Shared memory of parallel queries lies in the data directory, where
// a killed server cannot leak it.
func baseSettings() map[string]string {
	return map[string]string{
		"fsync":                      "off",
		"shared_buffers":             "64MB",
		"dynamic_shared_memory_type": "mmap",
		"log_timezone":               "UTC",
		"timezone":                   "UTC",
		"log_line_prefix":            "%m [%p] ",
	}
}

// OracleSettings make the record stream of a server its own oracle: every record of a resource manager with a mask
// carries the pages' after-images, commit times are kept, pages are vacuumed and checkpointed often, and no segment is
// recycled or removed. All majors know these settings by the same names.
func OracleSettings(_ int) map[string]string {
	return map[string]string{
		"wal_level":                      "replica",
		"wal_consistency_checking":       "all",
		"track_commit_timestamp":         "on",
		"checkpoint_timeout":             "30s",
		"max_wal_size":                   "256MB",
		"min_wal_size":                   "80MB",
		"wal_recycle":                    "off",
		"wal_keep_size":                  "64GB",
		"max_prepared_transactions":      "20",
		"max_wal_senders":                "10",
		"max_replication_slots":          "10",
		"autovacuum_naptime":             "1s",
		"autovacuum_vacuum_threshold":    "20",
		"autovacuum_vacuum_scale_factor": "0.02",
		"autovacuum_vacuum_cost_delay":   "0",
		"fsync":                          "off",
	}
}

// ArchiveSettings make a server archive each finished segment and history file to dir, which must be an existing
// directory that the server's user may write. A file appears there complete or not at all.
func ArchiveSettings(dir string) map[string]string {
	return map[string]string{
		"archive_mode": "on",
		"archive_command": fmt.Sprintf(`test ! -e "%[1]s/%%f" && cp "%%p" "%[1]s/.%%f.new" && mv "%[1]s/.%%f.new" "%[1]s/%%f"`,
			strings.ReplaceAll(dir, "%", "%%")),
	}
}

// Merge returns the union of settings, the last one to name a key winning.
func Merge(settings ...map[string]string) map[string]string {
	merged := map[string]string{}
	for _, s := range settings {
		maps.Copy(merged, s)
	}
	return merged
}

// conf returns settings as the lines of a configuration file, sorted.
func conf(settings map[string]string) string {
	var b strings.Builder
	for _, name := range sortedKeys(settings) {
		fmt.Fprintf(&b, "%s = '%s'\n", name, strings.ReplaceAll(settings[name], "'", "''"))
	}
	return b.String()
}

// arguments returns settings as command-line arguments of a server, sorted.
func arguments(settings map[string]string) []string {
	var args []string
	for _, name := range sortedKeys(settings) {
		args = append(args, "-c", name+"="+settings[name])
	}
	return args
}

func sortedKeys(m map[string]string) []string {
	keys := make([]string, 0, len(m))
	for k := range m {
		keys = append(keys, k)
	}
	sort.Strings(keys)
	return keys
}
