package datadir

import (
	"slices"
	"strings"
	"testing"

	"everpage/wal/pg"
)

func TestParseSetting(t *testing.T) {
	for line, want := range map[string]string{
		"a = 'b'\n":                  "a=b",
		"  A.b  'c d' # e":           "a.b=c d",
		"port=5433":                  "port=5433",
		"port 5433#x":                "port=5433",
		`x = 'it''s \'so\' \\ '`:     `x=it's 'so' \ `,
		"include_if_exists 'x.conf'": "include_if_exists=x.conf",
		"x = ''":                     "x=",
		"# a = b":                    "",
		"":                           "",
		"a":                          "",
		"a = # b":                    "",
		"a = 'open":                  "",
		"1a = 2":                     "",
	} {
		name, value, ok := parseSetting(line)
		got := ""
		if ok {
			got = name + "=" + value
		}
		if got != want {
			t.Errorf("%q is read as %q, want %q", line, got, want)
		}
	}
}

func configOf(t *testing.T, exists func(string) bool, files ...string) (map[string]string, []string) {
	t.Helper()
	s := newFake(15)
	for i := 0; i < len(files); i += 2 {
		s.cluster.Files = append(s.cluster.Files, ConfigFile{Path: files[i], Mode: 0o644, Content: []byte(files[i+1])})
	}
	o := s.options()
	o.PathExists = exists
	tree := plan(t, s, o)
	got := map[string]string{}
	for _, e := range tree.Entries() {
		if f, err := pg.Classify(e.Path); err == nil && f.Kind == pg.FileConfig {
			got[e.Path] = string(contentOf(t, e))
			if e.Mode != 0o600 {
				t.Errorf("%s has mode %v", e.Path, e.Mode)
			}
		}
	}
	return got, tree.Notes
}

// last reads a file as a server does: the last line of a name wins.
func last(file, name string) string {
	v := "absent"
	for line := range strings.Lines(file) {
		if n, value, ok := parseSetting(line); ok && n == name {
			v = value
		}
	}
	return v
}

func TestConfigWithoutAny(t *testing.T) {
	files, notes := configOf(t, nil)
	if len(files) != 4 || len(notes) != 3 {
		t.Errorf("files %v, notes %v", files, notes)
	}
	if strings.Contains(files[hbaConf], "trust") || !strings.Contains(files[hbaConf], "local   all             all                                     peer") {
		t.Error(files[hbaConf])
	}
	for name, want := range map[string]string{"archive_mode": "off", "synchronous_standby_names": "", "primary_conninfo": "", "listen_addresses": "localhost",
		"max_connections": "100", "max_prepared_transactions": "3", "max_worker_processes": "8", "max_wal_senders": "10", "max_locks_per_transaction": "64",
		"wal_level": "replica", "ssl": "absent", "max_logical_replication_workers": "0"} {
		if got := last(files[autoConf], name); got != want {
			t.Errorf("%s is %q, want %q", name, got, want)
		}
	}
}

func TestConfigOfTheSource(t *testing.T) {
	files, notes := configOf(t, func(p string) bool { return p == "/run/there" },
		mainConf, "data_directory = '/var/lib/postgresql/15/main'\nhba_file = '/etc/postgresql/pg_hba.conf'\nHBA_FILE 'own_hba.conf'\nident_file='/etc/x'\n"+
			"shared_buffers = 1GB\narchive_mode = on\nunix_socket_directories = '/run/there, @abstract'\nlog_directory = '/var/log/pg'\n"+
			"include_dir = 'conf.d'\ninclude '/etc/outside.conf'\ninclude_if_exists 'nothing.conf'\nssl = on\nstats_temp_directory = 'pg_stat_tmp'",
		autoConf, "listen_addresses = '*'\nexternal_pid_file = '/run/x.pid'",
		"own_hba.conf", "local all all peer\n",
		"conf.d/b.conf", "unix_socket_directories = '/run/missing'\n", "conf.d/a.conf", "include 'b.conf'\ninclude 'a.conf'\n", "server.crt", "c")
	main := files[mainConf]
	for name, want := range map[string]string{"data_directory": "absent", "hba_file": "own_hba.conf", "ident_file": "absent", "shared_buffers": "1GB",
		"unix_socket_directories": "/run/there, @abstract", "log_directory": "absent", "include_dir": "conf.d", "include": "absent", "include_if_exists": "absent",
		"ssl": "on", "stats_temp_directory": "pg_stat_tmp"} {
		if got := last(main, name); got != want {
			t.Errorf("%s is %q, want %q", name, got, want)
		}
	}
	if last(files["conf.d/b.conf"], "unix_socket_directories") != "absent" {
		t.Error("an included file keeps a missing directory")
	}
	if files[hbaConf] != "" || files[identConf] == "" {
		t.Error("minimal files: a hba_file that stays needs none, the dropped ident_file does")
	}
	if auto := files[autoConf]; last(auto, "listen_addresses") != "localhost" || last(auto, "ssl") != "off" || last(auto, "external_pid_file") != "absent" {
		t.Error(auto)
	}
	if len(notes) != 10 || !slices.ContainsFunc(notes, func(n string) bool { return strings.Contains(n, "/var/lib/postgresql/15/main") }) {
		t.Errorf("%d notes: %s", len(notes), strings.Join(notes, "\n"))
	}
}

func TestTLS(t *testing.T) {
	for conf, want := range map[string]string{
		"ssl = on":                                     "absent",
		"ssl = off":                                    "absent",
		"ssl = of\nssl_cert_file = '/missing'":         "absent",
		"ssl = yes\nssl_cert_file = '/missing'":        "off",
		"ssl = yes\nssl_cert_file = '/there'":          "absent",
		"ssl = 1\nssl_ca_file = 'ca.crt'":              "off",
		"ssl = true\nssl_ca_file = ''":                 "absent",
		"ssl = true\nssl_key_file = 'tls/server2.key'": "off",
	} {
		files, _ := configOf(t, func(p string) bool { return p == "/there" }, mainConf, conf, "server.crt", "", "server.key", "")
		if got := last(files[autoConf], "ssl"); got != want {
			t.Errorf("%q: ssl is overridden by %q, want %q", conf, got, want)
		}
	}
}

func TestParseTablespaceMapping(t *testing.T) {
	for s, want := range map[string]string{"/a=/b": "/a /b", `/a\=b/=/c`: "/a=b /c", "/a/../x=/b/": "/x /b"} {
		from, to, err := ParseTablespaceMapping(s)
		if err != nil || from+" "+to != want {
			t.Errorf("%q: %s %s %v", s, from, to, err)
		}
	}
	for _, s := range []string{"", "/a", "a=/b", "/a=b", "/a=/b=/c", "=/a"} {
		if _, _, err := ParseTablespaceMapping(s); err == nil {
			t.Errorf("%q is taken", s)
		}
	}
}

func TestAccessTokens(t *testing.T) {
	for line, want := range map[string]string{
		"host all,\"all\" @users 0.0.0.0/0 md5 # @none\n": `host all all* @users 0.0.0.0/0 md5`, "": "", "# x": "", "include \"a b.conf\"\n": "include a b.conf*",
		"\"@no\" \"a\"\"b\" c\"d e\"": `@no* a"b* cd e`, "a \\\n b \\\r\n c": "a b c", "x #\\\n@y": "x", "\"open": "open*", "\"\"": "*",
	} {
		var got []string
		for _, a := range accessTokens(line) {
			if a.quoted {
				a.text += "*"
			}
			got = append(got, a.text)
		}
		if strings.Join(got, " ") != want {
			t.Errorf("%q is read as %q, want %q", line, got, want)
		}
	}
}

func TestAccessOfTheSource(t *testing.T) {
	const hba = "local all @users,a peer\nhost all @/there/users 0/0 md5\nhost all \\\n  @/gone 0/0 md5\ninclude sub/more.conf\ninclude ../x.conf\ninclude_dir sub\ninclude_dir none\n" +
		"include_if_exists none.conf\ninclude /there/x.conf\nlocal include all trust\n"
	files, notes := configOf(t, func(p string) bool { return strings.HasPrefix(p, "/there") }, mainConf, "port = 1\n", autoConf, "", hbaConf, hba, identConf, "m @s p\n",
		"sub/more.conf", "local @users all peer\n")
	kept := func(file string) (lines []string) {
		for line := range strings.Lines(files[file]) {
			if !strings.HasPrefix(line, "#") {
				lines = append(lines, strings.TrimSpace(line))
			}
		}
		return lines
	}
	// The fake is of 15, which knows no includes there: they are rules like any other.
	if got, want := strings.Join(kept(hbaConf), "|"), "host all @/there/users 0/0 md5|include sub/more.conf|include ../x.conf|include_dir sub|include_dir none|"+
		"include_if_exists none.conf|include /there/x.conf|local include all trust"; got != want {
		t.Errorf("15: %q, want %q", got, want)
	}
	if len(notes) != 3 || len(kept(identConf)) != 0 {
		t.Errorf("15: %q, %q", notes, kept(identConf))
	}
	r := confReader{files: map[string]*ConfigFile{hbaConf: {Content: []byte(hba)}, "sub/more.conf": {Content: []byte("local @users all peer\nlocal all all peer\n")}},
		exists: func(p string) bool { return strings.HasPrefix(p, "/there") }, read: map[string]bool{}}
	r.access(hbaConf, 16)
	files = map[string]string{hbaConf: string(r.files[hbaConf].Content), "sub/more.conf": string(r.files["sub/more.conf"].Content)}
	if got, want := strings.Join(kept(hbaConf), "|"), "host all @/there/users 0/0 md5|include sub/more.conf|include_dir sub|include_if_exists none.conf|include /there/x.conf|"+
		"local include all trust"; got != want {
		t.Errorf("16: %q, want %q", got, want)
	}
	if got := strings.Join(kept("sub/more.conf"), "|"); got != "local all all peer" || len(r.notes) != 5 {
		t.Errorf("16: %q, %q", got, r.notes)
	}
}
