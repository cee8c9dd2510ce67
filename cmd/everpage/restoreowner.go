package main

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/user"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"

	"everpage/pageapi/datadir"
)

// owner is whom a restore by root belongs to, and the directory that says so.
type owner struct {
	*datadir.Owner
	as string
}

// ownerOf is whom root's restore belongs to: the owner of the directory, or of the nearest one above it that exists. It names nobody where nothing
// is to be handed over, as for everybody but root.
func ownerOf(dir string) (owner, error) {
	if os.Geteuid() != 0 {
		return owner{}, nil
	}
	for {
		info, err := os.Stat(dir)
		if errors.Is(err, fs.ErrNotExist) && dir != filepath.Dir(dir) {
			dir = filepath.Dir(dir)
			continue
		}
		if err != nil {
			return owner{}, err
		}
		st, ok := info.Sys().(*syscall.Stat_t)
		if !ok || st.Uid == 0 {
			return owner{}, nil
		}
		return owner{&datadir.Owner{UID: int(st.Uid), GID: int(st.Gid)}, dir}, nil
	}
}

// ownerNote tells root who can start the server.
func ownerNote(t *datadir.Tree, dir string, o owner) []string {
	switch {
	case os.Geteuid() != 0:
		return nil
	case o.Owner != nil:
		name := strconv.Itoa(o.UID)
		if u, err := user.LookupId(name); err == nil {
			name = u.Username
		}
		return []string{"all files belong to " + name + ", as " + o.as + " does: start the server as that user"}
	}
	paths := []string{shellQuote(dir)}
	for _, e := range t.Entries() {
		if e.Mode.Type() == fs.ModeSymlink {
			paths = append(paths, shellQuote(e.Link))
		}
	}
	return []string{fmt.Sprintf("all files belong to root, whom PostgreSQL refuses: chown -R postgres: %s, and start the server as that user", strings.Join(paths, " "))}
}

// shellQuote makes a path one word of a shell.
func shellQuote(path string) string {
	plain := func(c rune) bool {
		return c >= 'a' && c <= 'z' || c >= 'A' && c <= 'Z' || c >= '0' && c <= '9' || strings.ContainsRune("/._-+=:,@", c)
	}
	if strings.IndexFunc(path, func(c rune) bool { return !plain(c) }) < 0 {
		return path
	}
	return "'" + strings.ReplaceAll(path, "'", `'\''`) + "'"
}
