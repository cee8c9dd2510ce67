package cluster

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"time"

	"everpage/cluster/catalog"
	"everpage/cluster/fsm"
)

// identity is who this node is. It is the file identity.json.
type identity struct {
	Format    int    `json:"format"`
	ID        string `json:"id"`
	Name      string `json:"name"`
	Cluster   string `json:"cluster"`
	ClusterID string `json:"cluster_id,omitempty"` // empty until it is a member
	Raft      string `json:"raft,omitempty"`       // where it listened last
	Gossip    string `json:"gossip,omitempty"`
}

const (
	identityFormat = 1
	identityFile   = "identity.json"
	cacheFile      = "state"
	chunksFile     = "chunks"
)

// loadIdentity reads who this node is, or makes it someone.
func loadIdentity(cfg *Config) (identity, error) {
	path := filepath.Join(cfg.Dir, identityFile)
	b, err := os.ReadFile(path)
	if errors.Is(err, fs.ErrNotExist) {
		if _, err := os.Stat(filepath.Join(cfg.Dir, "raft")); err == nil {
			return identity{}, fmt.Errorf("%s is missing, but there is a log beside it: nothing says whose it is; put the file back, or take an empty directory", path)
		}
		if err := os.MkdirAll(cfg.Dir, 0o700); err != nil {
			return identity{}, err
		}
		id := identity{Format: identityFormat, ID: newID(), Name: cfg.Name, Cluster: cfg.Cluster}
		return id, id.save(cfg.Dir)
	}
	if err != nil {
		return identity{}, err
	}
	var id identity
	if err := json.Unmarshal(b, &id); err != nil {
		return id, fmt.Errorf("%s is damaged: %w", path, err)
	}
	if id.Format > identityFormat {
		return id, fmt.Errorf("%s has format %d, this release knows up to %d: use the newer release", path, id.Format, identityFormat)
	}
	if id.Name != cfg.Name || id.Cluster != cfg.Cluster {
		return id, fmt.Errorf("%s belongs to node %s of cluster %s, not to node %s of cluster %s: name them as they were, or use another directory",
			cfg.Dir, id.Name, id.Cluster, cfg.Name, cfg.Cluster)
	}
	return id, nil
}

func (id identity) save(dir string) error {
	b, err := json.MarshalIndent(id, "", "  ")
	if err != nil {
		return err
	}
	return replaceFile(dir, identityFile, append(b, '\n'))
}

// replaceFile replaces a file durably and as a whole. It may hold a password, so nobody else may read it.
func replaceFile(dir, name string, b []byte) error {
	path := filepath.Join(dir, name)
	f, err := os.OpenFile(path+".new", os.O_CREATE|os.O_TRUNC|os.O_WRONLY, 0o600)
	if err != nil {
		return err
	}
	_, err = f.Write(b)
	if err = errors.Join(err, f.Sync(), f.Close()); err != nil {
		return fmt.Errorf("write %s: %w", path, err)
	}
	if err := os.Rename(path+".new", path); err != nil {
		return err
	}
	d, err := os.Open(dir)
	if err != nil {
		return err
	}
	return errors.Join(d.Sync(), d.Close())
}

// loadCache reads the state that this node knew last; nil if there is none.
func loadCache(dir string) (*State, error) {
	b, err := os.ReadFile(filepath.Join(dir, cacheFile))
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	s, err := fsm.Decode(b)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", filepath.Join(dir, cacheFile), err)
	}
	f, err := os.Open(filepath.Join(dir, chunksFile))
	if errors.Is(err, fs.ErrNotExist) {
		return s, nil
	}
	if err != nil {
		return nil, err
	}
	defer f.Close()
	if s.Inventory, err = catalog.Read(bufio.NewReader(f)); err != nil {
		return nil, fmt.Errorf("%s: %w", f.Name(), err)
	}
	return s, nil
}

const (
	// cacheEvery bounds how often the state is written.
	cacheEvery = 200 * time.Millisecond
	// The inventory of chunks is large and changes with every table: it is written more rarely, and may be older than the state beside it.
	chunksEvery = 10 * time.Second
)

// kept is what of the state was written last.
type kept struct {
	index  uint64
	chunks *catalog.Catalog
	at     time.Time // of chunks
}

// keepCache keeps the state beside the log, since the log is readable only with a majority of the voters.
func (c *Cluster) keepCache(ctx context.Context) error {
	s, _ := c.Watch()
	k := kept{index: s.Index, chunks: s.Inventory}
	if c.cached.Load() == nil {
		k = kept{}
	}
	for {
		_, changed := c.Watch()
		late := c.writeCache(&k, false)
		select {
		case <-ctx.Done():
		case <-time.After(late):
		case <-changed:
			select {
			case <-ctx.Done():
			case <-time.After(cacheEvery):
			}
		}
		if ctx.Err() != nil {
			c.writeCache(&k, true)
			return ctx.Err()
		}
	}
}

// writeCache writes what is newer than what was kept, and answers when it wants to be called again.
func (c *Cluster) writeCache(k *kept, last bool) time.Duration {
	s := c.State()
	if s.Index <= k.index && s.Inventory == k.chunks {
		return time.Hour
	}
	err := func() error {
		if s.Index > k.index {
			small := *s
			small.Inventory = nil
			b, err := small.Encode()
			if err == nil {
				err = replaceFile(c.cfg.Dir, cacheFile, b)
			}
			if err != nil {
				return err
			}
			k.index = s.Index
		}
		if s.Inventory == k.chunks || time.Since(k.at) < chunksEvery && !last {
			return nil
		}
		list := s.Inventory
		if list == nil {
			list = &catalog.Catalog{}
		}
		var b bytes.Buffer
		if _, err := list.WriteTo(&b); err != nil {
			return err
		}
		k.at = time.Now()
		if err := replaceFile(c.cfg.Dir, chunksFile, b.Bytes()); err != nil {
			return err
		}
		k.chunks = s.Inventory
		return nil
	}()
	if err != nil { // a full disk, say: reads go on, and the log has it all
		c.cfg.Logger.Warn("the cluster's state can't be kept", "error", err)
	}
	return max(cacheEvery, chunksEvery-time.Since(k.at))
}
