package datadir

import (
	"fmt"
	"path/filepath"
	"strings"
)

// TablespacesBeside places the tablespaces of a directory: at the new path where mapping has the location, else in dir.tablespaces/OID. They
// never go to where the source has them.
func TablespacesBeside(dir string, mapping map[string]string) func(Tablespace) (string, error) {
	return func(t Tablespace) (string, error) {
		target := filepath.Join(filepath.Clean(dir)+".tablespaces", fmt.Sprint(t.Oid))
		if to, ok := mapping[filepath.Clean(t.Location)]; ok {
			target = to
		}
		target, err := filepath.Abs(target)
		if err != nil {
			return "", err
		}
		if source := filepath.Clean(t.Location); target == source || strings.HasPrefix(target, source+"/") {
			return "", fmt.Errorf("tablespace %d would go to %s, which is the source's: map it elsewhere", t.Oid, target)
		}
		return target, nil
	}
}

// ParseTablespaceMapping reads OLD=NEW, both absolute paths; an equals sign in a path is written \=, as pg_basebackup has it.
func ParseTablespaceMapping(s string) (from, to string, err error) {
	var parts [2]strings.Builder
	n := 0
	for i := 0; i < len(s); i++ {
		switch {
		case s[i] == '\\' && i+1 < len(s) && s[i+1] == '=':
			i++
			parts[n].WriteByte('=')
		case s[i] == '=' && n == 0:
			n = 1
		case s[i] == '=':
			return "", "", fmt.Errorf("tablespace mapping %q has several equals signs: write those of paths as \\=", s)
		default:
			parts[n].WriteByte(s[i])
		}
	}
	from, to = parts[0].String(), parts[1].String()
	if !filepath.IsAbs(from) || !filepath.IsAbs(to) {
		return "", "", fmt.Errorf("tablespace mapping %q: want OLD=NEW, two absolute paths", s)
	}
	return filepath.Clean(from), filepath.Clean(to), nil
}
