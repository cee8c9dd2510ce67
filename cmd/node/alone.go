package node

import (
	"errors"
	"path/filepath"

	"everpage/cluster"
	"everpage/wal/stream"
)

// MakeAlone makes the node of a data directory, which must not run, its cluster's only one. It returns the names of the nodes that are given up.
func MakeAlone(cfg Config) (lost []string, err error) {
	if err := cfg.complete(); err != nil {
		return nil, err
	}
	if err := refuseOld(cfg.Data); err != nil {
		return nil, err
	}
	lock, err := lockData(cfg.Data)
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, lock.Close()) }()
	return cluster.MakeAlone(cluster.Config{Dir: filepath.Join(cfg.Data, clusterDir), Name: cfg.Node, Cluster: cfg.Cluster, Logger: cfg.Logger}, func(name string) (string, error) {
		return stream.NodeSlot(cfg.Cluster, name)
	})
}
