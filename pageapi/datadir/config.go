package datadir

import (
	"cmp"
	"context"
	"fmt"
	"path"
	"slices"
	"strings"

	"everpage/wal/pg"
)

const (
	mainConf  = "postgresql.conf"
	autoConf  = "postgresql.auto.conf"
	hbaConf   = "pg_hba.conf"
	identConf = "pg_ident.conf"
)

const minimalConf = `# The source keeps its postgresql.conf outside of its data directory, so this copy starts with PostgreSQL's defaults
# and with what postgresql.auto.conf says.
`

const minimalHBA = `# The source keeps its pg_hba.conf outside of its data directory. Here a role logs in from an account of the same name, or by its password
# over the loopback addresses ("md5" takes SCRAM secrets too).
# TYPE  DATABASE        USER            ADDRESS                 METHOD
local   all             all                                     peer
host    all             all             127.0.0.1/32            md5
host    all             all             ::1/128                 md5
local   replication     all                                     peer
host    replication     all             127.0.0.1/32            md5
host    replication     all             ::1/128                 md5
`

const minimalIdent = "# The source keeps its pg_ident.conf outside of its data directory.\n"

// config adds the source's configuration, without what would lead the copy to the source's own files, and the overrides that keep it apart from
// the source's archive, standbys, clients and publishers.
func (b *builder) config(context.Context) error {
	r := confReader{files: map[string]*ConfigFile{}, exists: b.o.PathExists, settings: map[string]string{}, read: map[string]bool{}}
	for _, f := range b.c.Files {
		k, err := pg.Classify(f.Path)
		if err != nil {
			return err
		}
		if k.Kind != pg.FileConfig {
			return fmt.Errorf("%s is not a configuration file, but a %v file: the source is at odds with itself", f.Path, k.Kind)
		}
		if r.files[f.Path] != nil {
			return fmt.Errorf("%s is there twice: the source is at odds with itself", f.Path)
		}
		c := f
		r.files[f.Path] = &c
	}
	r.needed(mainConf, minimalConf)
	r.needed(autoConf, "")
	r.rewrite(mainConf)
	r.rewrite(autoConf)
	if r.settings["hba_file"] == "" {
		r.needed(hbaConf, minimalHBA)
	}
	if r.settings["ident_file"] == "" {
		r.needed(identConf, minimalIdent)
	}
	r.access(path.Clean(cmp.Or(r.settings["hba_file"], hbaConf)), b.major)
	r.access(path.Clean(cmp.Or(r.settings["ident_file"], identConf)), b.major)
	auto := r.files[autoConf]
	auto.Content = append(endLine(auto.Content), overrides(b.c, &r)...)
	b.tree.Notes = append(b.tree.Notes, r.notes...)
	for _, f := range r.files {
		mode := f.Mode.Perm() & 0o700
		if err := b.file(f.Path, mode|fileMode, int64(len(f.Content)), static(f.Content)); err != nil {
			return err
		}
	}
	return nil
}

func endLine(b []byte) []byte {
	if len(b) > 0 && b[len(b)-1] != '\n' {
		b = append(b[:len(b):len(b)], '\n')
	}
	return b
}

// overrides are the lines that postgresql.auto.conf ends with. Being the last ones read they win.
func overrides(c *Cluster, r *confReader) string {
	var s strings.Builder
	set := func(name, value string) { fmt.Fprintf(&s, "%s = '%s'\n", name, value) }
	number := func(name string, v int32) { set(name, fmt.Sprint(v)) }
	onOff := func(v bool) string {
		if v {
			return "on"
		}
		return "off"
	}
	s.WriteString("# This directory is a copy: it must not touch the archive, the standbys, the addresses and the publishers of its source.\n")
	set("archive_mode", "off")
	set("synchronous_standby_names", "")
	set("primary_conninfo", "")
	set("primary_slot_name", "")
	set("listen_addresses", "localhost")
	set("max_logical_replication_workers", "0")
	s.WriteString("# What the source ran with.\n")
	levels := [...]string{pg.WALLevelMinimal: "minimal", pg.WALLevelReplica: "replica", pg.WALLevelLogical: "logical"}
	k := &c.Control
	if k.WALLevel >= 0 && int(k.WALLevel) < len(levels) {
		set("wal_level", levels[k.WALLevel])
	}
	set("wal_log_hints", onOff(k.WALLogHints))
	set("track_commit_timestamp", onOff(k.TrackCommitTimestamp))
	number("max_connections", k.MaxConnections)
	number("max_worker_processes", k.MaxWorkerProcesses)
	number("max_wal_senders", k.MaxWALSenders)
	number("max_prepared_transactions", max(k.MaxPreparedXacts, int32(len(c.TwoPhase))))
	number("max_locks_per_transaction", k.MaxLocksPerXact)
	// A server stops at its start if it has fewer slots than origins; ten is the default.
	if n := len(c.Origins); n > 10 {
		number("max_replication_slots", int32(n))
		if k.Major >= 18 {
			number("max_active_replication_origins", int32(n))
		}
	}
	if r.tlsIncomplete() {
		set("ssl", "off")
		r.notes = append(r.notes, "ssl is turned off: a certificate or key that it names lies outside of the source's data directory")
	}
	return s.String()
}

// confReader follows a server's configuration through its files, and takes out what does not fit a copy.
type confReader struct {
	files    map[string]*ConfigFile
	exists   func(string) bool
	settings map[string]string // the last value of each setting that stays
	read     map[string]bool   // files that were rewritten
	notes    []string
}

func (r *confReader) needed(p, content string) {
	if r.files[p] == nil {
		r.files[p] = &ConfigFile{Path: p, Mode: fileMode, Content: []byte(content)}
		if content != "" {
			r.notes = append(r.notes, p+" is not in the source's data directory: a minimal one is written")
		}
	}
}

// rewrite reads a file and those that it includes, in the server's order, and turns lines that cannot stay into comments.
func (r *confReader) rewrite(p string) {
	if r.read[p] {
		return
	}
	r.read[p] = true
	f := r.files[p]
	var out strings.Builder
	for line := range strings.Lines(string(f.Content)) {
		name, value, ok := parseSetting(line)
		if ok {
			if why := r.unfit(p, name, value); why != "" {
				out.WriteString("# left out of this copy: ")
				r.notes = append(r.notes, fmt.Sprintf("%s: %s = '%s' is left out: %s", p, name, value, why))
			} else if !strings.HasPrefix(name, "include") {
				r.settings[name] = value
			}
		}
		out.WriteString(line)
	}
	f.Content = []byte(out.String())
}

// unfit tells why a setting cannot stay, "" if it can. Includes that stay are followed.
func (r *confReader) unfit(file, name, value string) string {
	inside := !path.IsAbs(value)
	switch name {
	case "data_directory", "config_file", "external_pid_file":
		return "the copy has its own"
	case "hba_file", "ident_file":
		if !inside || r.files[path.Clean(value)] == nil {
			return "the file is not in the source's data directory"
		}
	case "log_directory", "stats_temp_directory":
		if !inside {
			return "the source writes there"
		}
	case "unix_socket_directories":
		for d := range strings.SplitSeq(value, ",") {
			if d = strings.Trim(strings.TrimSpace(d), `"`); path.IsAbs(d) && !r.pathExists(d) {
				return "a directory does not exist"
			}
		}
	case "include", "include_if_exists":
		p := path.Join(path.Dir(file), value)
		if !inside || r.files[p] == nil {
			return "the file is not in the source's data directory"
		}
		r.rewrite(p)
	case "include_dir":
		if !inside {
			return "the directory is not in the source's data directory"
		}
		return r.includeDir(path.Join(path.Dir(file), value))
	}
	return ""
}

// includeDir follows include_dir: the files *.conf directly in it, in the order of their names.
func (r *confReader) includeDir(dir string) string {
	names := r.confsIn(dir)
	if len(names) == 0 {
		return "the directory holds no file of the source's data directory"
	}
	for _, p := range names {
		r.rewrite(p)
	}
	return ""
}

// confsIn are the files *.conf directly in a directory, in the order of their names.
func (r *confReader) confsIn(dir string) (names []string) {
	for p := range r.files {
		if path.Dir(p) == dir && path.Ext(p) == ".conf" && !strings.HasPrefix(path.Base(p), ".") {
			names = append(names, p)
		}
	}
	slices.Sort(names)
	return names
}

func (r *confReader) pathExists(p string) bool { return r.exists != nil && r.exists(p) }

// tlsIncomplete tells whether TLS is on and a file that it needs is not there. A server does not start then.
func (r *confReader) tlsIncomplete() bool {
	switch v := strings.ToLower(r.settings["ssl"]); {
	case v == "", v == "0", strings.HasPrefix("off", v) && len(v) > 1, strings.HasPrefix("no", v), strings.HasPrefix("false", v):
		return false
	}
	for name, standard := range map[string]string{"ssl_cert_file": "server.crt", "ssl_key_file": "server.key", "ssl_ca_file": "", "ssl_crl_file": "",
		"ssl_dh_params_file": ""} {
		p, set := r.settings[name]
		if !set {
			p = standard
		}
		if p == "" {
			continue
		}
		if path.IsAbs(p) && !r.pathExists(p) || !path.IsAbs(p) && r.files[path.Clean(p)] == nil {
			return true
		}
	}
	dir := r.settings["ssl_crl_dir"]
	return dir != "" && !r.pathExists(dir)
}

// parseSetting reads one line of a configuration file (guc-file.l): name = 'value', the equals sign and quotes optional. Names are lower-cased.
func parseSetting(line string) (name, value string, ok bool) {
	s := strings.TrimSpace(line)
	end := strings.IndexFunc(s, func(c rune) bool {
		return !(c >= 'a' && c <= 'z' || c >= 'A' && c <= 'Z' || c >= '0' && c <= '9' || c == '_' || c == '.' || c == '$')
	})
	if end <= 0 || s[0] >= '0' && s[0] <= '9' {
		return "", "", false
	}
	name, s = strings.ToLower(s[:end]), strings.TrimSpace(s[end:])
	s = strings.TrimSpace(strings.TrimPrefix(s, "="))
	if s == "" || s[0] == '#' {
		return "", "", false
	}
	if s[0] != '\'' {
		if i := strings.IndexAny(s, "# \t"); i >= 0 {
			s = s[:i]
		}
		return name, s, true
	}
	var v strings.Builder
	for i := 1; i < len(s); i++ {
		switch {
		case s[i] == '\\' && i+1 < len(s):
			i++
			v.WriteByte(s[i])
		case s[i] == '\'' && i+1 < len(s) && s[i+1] == '\'':
			i++
			v.WriteByte('\'')
		case s[i] == '\'':
			return name, v.String(), true
		default:
			v.WriteByte(s[i])
		}
	}
	return "", "", false
}
