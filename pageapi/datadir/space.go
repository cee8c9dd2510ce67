package datadir

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"syscall"
)

// enoughSpace refuses to begin what cannot fit on the file systems that the tree goes to.
func enoughSpace(t *Tree, dir string) error {
	links := map[string]string{}
	for _, e := range t.entries {
		if e.Mode.Type() == fs.ModeSymlink {
			links[e.Path] = e.Link
		}
	}
	need := map[uint64]int64{} // by device
	where := map[uint64]string{}
	device := map[string]uint64{}
	for _, e := range t.entries {
		root := dir
		if parts := strings.SplitN(e.Path, "/", 3); len(parts) == 3 && links[parts[0]+"/"+parts[1]] != "" {
			root = links[parts[0]+"/"+parts[1]]
		}
		dev, ok := device[root]
		if !ok {
			existing, err := existingParent(root)
			if err != nil {
				return err
			}
			var st syscall.Stat_t
			if err := syscall.Stat(existing, &st); err != nil {
				return fmt.Errorf("%s: %w", existing, err)
			}
			dev = uint64(st.Dev)
			device[root], where[dev] = dev, existing
		}
		// What a file system adds to a file is not known; a block each comes near it.
		need[dev] += (e.Size + 4095) &^ 4095
	}
	for dev, bytes := range need {
		var st syscall.Statfs_t
		if err := syscall.Statfs(where[dev], &st); err != nil {
			return fmt.Errorf("%s: %w", where[dev], err)
		}
		if free := uint64(st.Bsize) * st.Bavail; uint64(bytes) > free {
			return fmt.Errorf("%d MiB are needed below %s and %d MiB are free: nothing was written", bytes>>20, where[dev], free>>20)
		}
	}
	return nil
}

// existingParent is the nearest of a path and those above it that exists.
func existingParent(p string) (string, error) {
	for {
		_, err := os.Stat(p)
		if err == nil {
			return p, nil
		}
		if !errors.Is(err, fs.ErrNotExist) || filepath.Dir(p) == p {
			return "", err
		}
		p = filepath.Dir(p)
	}
}
