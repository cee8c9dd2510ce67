package pgtest

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/user"
	"path/filepath"
	"strconv"
	"syscall"
)

// account is the user that servers run as. PostgreSQL refuses root, so root's servers run as postgres or nobody.
type account struct {
	uid, gid uint32
	name     string
	// other is whether the account is not the one that this process runs as.
	other bool
}

func serverAccount() (account, error) {
	if os.Geteuid() != 0 {
		return account{uid: uint32(os.Geteuid()), gid: uint32(os.Getegid()), name: strconv.Itoa(os.Geteuid())}, nil
	}
	for _, name := range []string{"postgres", "nobody"} {
		u, err := user.Lookup(name)
		if err != nil {
			continue
		}
		uid, err := strconv.ParseUint(u.Uid, 10, 32)
		if err != nil {
			return account{}, fmt.Errorf("user %s: %w", name, err)
		}
		gid, err := strconv.ParseUint(u.Gid, 10, 32)
		if err != nil {
			return account{}, fmt.Errorf("user %s: %w", name, err)
		}
		return account{uid: uint32(uid), gid: uint32(gid), name: name, other: true}, nil
	}
	return account{}, errors.New("PostgreSQL does not run as root and there is neither a user postgres nor nobody")
}

func (a account) credential() *syscall.Credential {
	if !a.other {
		return nil
	}
	return &syscall.Credential{Uid: a.uid, Gid: a.gid}
}

// own hands path, and all below it, to the account. Links are handed over, not followed.
func (a account) own(path string) error {
	if !a.other {
		return nil
	}
	err := filepath.WalkDir(path, func(p string, _ fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		return os.Lchown(p, int(a.uid), int(a.gid))
	})
	if err != nil {
		return fmt.Errorf("hand %s to user %s: %w", path, a.name, err)
	}
	return nil
}

// reach makes dir's parents passable for the account. Only parents below the temporary directory are changed: those that
// the testing package makes are for their owner alone.
func (a account) reach(dir string) error {
	if !a.other {
		return nil
	}
	temp := os.TempDir()
	for p := filepath.Dir(dir); p != "/" && p != "."; p = filepath.Dir(p) {
		info, err := os.Stat(p)
		if err != nil {
			return fmt.Errorf("reach %s: %w", dir, err)
		}
		owner, _ := info.Sys().(*syscall.Stat_t)
		if info.Mode().Perm()&0o001 != 0 || owner != nil && owner.Uid == a.uid && info.Mode().Perm()&0o100 != 0 {
			continue
		}
		if rel, err := filepath.Rel(temp, p); err != nil || rel == "." || !filepath.IsLocal(rel) {
			return fmt.Errorf("user %s cannot reach %s: %s has mode %v; choose another directory", a.name, dir, p, info.Mode().Perm())
		}
		if err := os.Chmod(p, info.Mode().Perm()|0o011); err != nil {
			return fmt.Errorf("reach %s: %w", dir, err)
		}
	}
	return nil
}

// mkdir makes dir and its parents, reachable for and owned by the account.
func (a account) mkdir(dir string) error {
	if err := os.MkdirAll(filepath.Dir(dir), 0o755); err != nil {
		return err
	}
	if err := os.Mkdir(dir, 0o700); err != nil && !errors.Is(err, fs.ErrExist) {
		return err
	}
	if err := a.reach(dir); err != nil {
		return err
	}
	if !a.other {
		return nil
	}
	return os.Lchown(dir, int(a.uid), int(a.gid))
}
