// Package lint holds the rules of the house that no other tool knows, as tests.
package lint

import (
	"go/parser"
	"go/token"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
)

const root = "../.."

// may says which packages of the project a package may import, by path prefix. A package under none of the keys may import nothing.
// The longest key wins. What isn't in the table is forbidden: imports point down only.
var may = map[string][]string{
	"wal/pg":            {},
	"wal":               {"wal/pg"},
	"wal/waltest":       {"wal", "wal/pg"},
	"wal/waldump":       {"wal", "wal/pg"},
	"wal/stream":        {"wal", "wal/pg"},
	"redo":              {"wal", "wal/pg", "redo/page"},
	"redo/page":         {"wal/pg"},
	"cluster":           {"cluster/catalog", "cluster/command", "cluster/fsm", "cluster/members", "cluster/placement", "cluster/raft", "wal/pg"},
	"cluster/catalog":   {"cluster/placement", "wal/pg"},
	"cluster/command":   {"cluster/placement", "wal/pg"},
	"cluster/fsm":       {"cluster/catalog", "cluster/command", "cluster/placement", "wal/pg"},
	"cluster/members":   {},
	"cluster/placement": {"wal/pg"},
	"cluster/raft":      {"cluster/fsm"},
	"chunk":             {"cluster/placement", "redo", "wal", "wal/pg"},
	"chunk/ingest":      {"chunk", "redo", "wal", "wal/pg"},
	"chunk/importer":    {"chunk", "chunk/ingest", "redo", "wal", "wal/pg", "wal/stream"},
	"chunk/offline":     {"chunk", "chunk/ingest", "chunk/importer", "redo", "wal", "wal/pg", "wal/stream"},
	"chunk/verify":      {"chunk", "chunk/ingest", "chunk/importer", "chunk/offline", "redo", "wal", "wal/pg", "wal/stream"},
	"pageapi":           {"cluster/placement", "pageapi/datadir", "pageapi/pagepb", "wal/pg"},
	"pageapi/datadir":   {"wal/pg"},
	"pageapi/pagepb":    {},
	"backup/store":      {},
	"backup/archive":    {"backup/store", "wal", "wal/pg"},
	"backup":            {"backup/archive", "backup/store", "chunk", "cluster/placement", "wal", "wal/pg"},
	"cmd":               {""},
	"deploy":            {""},
}

// outside says which foreign modules only some packages may import.
var outside = map[string][]string{
	"google.golang.org/grpc":              {"pageapi", "cmd", "deploy"},
	"github.com/cockroachdb/pebble":       {"chunk", "wal", "deploy"}, // wal: the file system interface
	"github.com/jackc":                    {"wal/stream", "deploy"},
	"github.com/spf13":                    {"cmd/everpage", "deploy"},
	"github.com/hashicorp":                {"cluster"},
	"github.com/aws":                      {"backup"},
	"github.com/prometheus/client_golang": {"cmd/node"},
}

func under(path, prefix string) bool {
	return prefix == "" || path == prefix || strings.HasPrefix(path, prefix+"/")
}

func allowed(pkg string) ([]string, bool) {
	best, found := "", false
	for key := range may {
		if under(pkg, key) && len(key) >= len(best) {
			best, found = key, true
		}
	}
	return may[best], found
}

// eachFile parses every Go file of the project that is not generated.
func eachFile(t *testing.T, fn func(path, pkg string, imports []string, test bool)) {
	t.Helper()
	err := filepath.WalkDir(root, func(path string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		if d.IsDir() && strings.HasPrefix(d.Name(), ".") && d.Name() != ".." {
			return filepath.SkipDir
		}
		if d.IsDir() || !strings.HasSuffix(path, ".go") {
			return nil
		}
		f, err := parser.ParseFile(token.NewFileSet(), path, nil, parser.ImportsOnly)
		if err != nil {
			return err
		}
		rel, err := filepath.Rel(root, filepath.Dir(path))
		if err != nil {
			return err
		}
		var imports []string
		for _, i := range f.Imports {
			name, err := strconv.Unquote(i.Path.Value)
			if err != nil {
				return err
			}
			imports = append(imports, name)
		}
		fn(path, filepath.ToSlash(rel), imports, strings.HasSuffix(path, "_test.go"))
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
}

func TestImportsPointDown(t *testing.T) {
	files := 0
	eachFile(t, func(path, pkg string, imports []string, test bool) {
		files++
		list, known := allowed(pkg)
		if !known {
			t.Errorf("%s: package %s is not in the import table", path, pkg)
			return
		}
		for _, name := range imports {
			for module, users := range outside {
				if under(name, module) || strings.HasPrefix(name, module+"/") {
					ok := test
					for _, u := range users {
						ok = ok || under(pkg, u)
					}
					if !ok {
						t.Errorf("%s imports %s, which is for %s only", path, name, strings.Join(users, ", "))
					}
				}
			}
			own, inside := strings.CutPrefix(name, "everpage/")
			if !inside || test && under(own, "deploy") || own == pkg {
				continue
			}
			ok := false
			for _, a := range list {
				ok = ok || a == own || a == "" || a == "pageapi/pagepb" && under(own, a)
			}
			if !ok && !test {
				t.Errorf("%s imports %s: the import table allows %s only %q", path, own, pkg, list)
			}
		}
	})
	if files < 50 {
		t.Fatalf("only %d Go files were found", files)
	}
}

// The environment, signals and the process's end belong to the commands.
func TestAmbientStateBelongsToCommands(t *testing.T) {
	banned := []string{"os.Getenv(", "os.LookupEnv(", "os.Exit(", "signal.Notify", "func init()"}
	eachFile(t, func(path, pkg string, _ []string, test bool) {
		if test || under(pkg, "cmd") || under(pkg, "deploy") || strings.HasSuffix(path, ".pb.go") {
			return
		}
		b, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		for _, word := range banned {
			if strings.Contains(string(b), word) {
				t.Errorf("%s: %s belongs to cmd", path, strings.TrimSuffix(word, "("))
			}
		}
	})
}

func TestTestsDoNotSleep(t *testing.T) {
	eachFile(t, func(path, pkg string, _ []string, test bool) {
		if !test || pkg == "deploy/lint" {
			return
		}
		b, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		if strings.Contains(string(b), "time.Sleep(") && !strings.Contains(string(b), "synctest") {
			t.Errorf("%s sleeps: wait for the condition", path)
		}
	})
}

func TestTopLevelHoldsOnlyItsFolders(t *testing.T) {
	want := map[string]bool{"cluster": true, "chunk": true, "wal": true, "redo": true, "pageapi": true, "backup": true, "cmd": true, "deploy": true,
		"README.md": true, "ARCHITECTURE.md": true, "LICENSE": true, "Makefile": true, "go.mod": true, "go.sum": true,
		"bin": true, "out": true} // made by make, ignored by git
	entries, err := os.ReadDir(root)
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range entries {
		if !want[e.Name()] && !strings.HasPrefix(e.Name(), ".") {
			t.Errorf("%s does not belong at the top", e.Name())
		}
	}
}
