package cluster

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"

	"everpage/cluster/fsm"
	"everpage/cluster/raft"
)

// MakeAlone makes, of what a node knew last, a cluster of that node alone: where the others are lost for good and with them the majority without which
// nothing can be agreed on. The node must not run. It returns the names of those that are no members any more. Called again, it does no harm.
func MakeAlone(cfg Config, slot func(name string) (string, error)) (lost []string, err error) {
	if _, err := os.Stat(filepath.Join(cfg.Dir, identityFile)); errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("%s has no data of a node", cfg.Dir)
	}
	id, err := loadIdentity(&cfg)
	if err != nil {
		return nil, err
	}
	next, err := raft.MakeAlone(raft.Options{ID: id.ID, Dir: filepath.Join(cfg.Dir, "raft"), Logger: cfg.Logger}, func(s *fsm.State) (*fsm.State, error) {
		for _, n := range s.Nodes {
			if n.ID != id.ID {
				lost = append(lost, n.Name)
			}
		}
		return s.Alone(id.ID, newID(), slot)
	})
	if err != nil {
		return nil, err
	}
	// What the log says counts from here on. Where this ends early the next start puts the rest right.
	b, err := next.Encode()
	if err != nil {
		return nil, err
	}
	if err := replaceFile(cfg.Dir, cacheFile, b); err != nil {
		return nil, err
	}
	id.ClusterID = next.ID
	return lost, id.save(cfg.Dir)
}

// renamed takes over the id that the cluster got when this node was made its only one.
func (c *Cluster) renamed() error {
	s := c.machine.State()
	if c.id.ClusterID == "" || !slices.Contains(s.Former, c.id.ClusterID) {
		return nil
	}
	c.id.ClusterID = s.ID
	return c.id.save(c.cfg.Dir)
}
