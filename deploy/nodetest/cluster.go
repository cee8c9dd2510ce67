package nodetest

import (
	"context"
	"errors"
	"fmt"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"everpage/wal/pg"
)

// Cluster is several nodes that know each other, named node1, node2 and so on.
type Cluster struct{ Nodes []*Node }

// StartCluster starts nodes under dir, the first of which makes the cluster. config, if not nil, changes how one of them runs.
func StartCluster(ctx context.Context, nodes int, base Config, config func(i int, c *Config)) (*Cluster, error) {
	c := &Cluster{}
	for i := range nodes {
		cfg := base
		name := fmt.Sprintf("node%d", i+1)
		cfg.Data = filepath.Join(base.Data, name)
		cfg.Args = append(slices.Clone(base.Args), "--node", name)
		if i > 0 {
			cfg.Args = append(cfg.Args, "--join", c.Nodes[0].Address())
		}
		if config != nil {
			config(i, &cfg)
		}
		n, err := Start(ctx, cfg)
		if err != nil {
			return nil, errors.Join(fmt.Errorf("%s: %w", name, err), c.Close())
		}
		c.Nodes = append(c.Nodes, n)
	}
	return c, nil
}

// Close ends all nodes at once.
func (c *Cluster) Close() error {
	for _, n := range c.Nodes {
		n.Kill9()
	}
	return nil
}

// Addresses are where the nodes answer, separated by commas as --server takes them.
func (c *Cluster) Addresses() string {
	var list []string
	for _, n := range c.Nodes {
		list = append(list, n.Address())
	}
	return strings.Join(list, ",")
}

// Member is what the cluster knows of a node.
type Member struct {
	Name     string `json:"name"`
	State    string `json:"state"`
	Alive    bool   `json:"alive"`
	Leader   bool   `json:"leader"`
	Full     int    `json:"full_shards"`
	Joining  int    `json:"joining_shards"`
	Follow   string `json:"follow"`
	Durable  string `json:"durable_lsn"`
	Readable string `json:"readable_lsn"`
}

// Members asks a node what it knows of all.
func (n *Node) Members(ctx context.Context) ([]Member, error) {
	var v struct{ Nodes []Member }
	err := n.JSON(ctx, &v, "node", "list", "--timeout", "3s")
	return v.Nodes, err
}

// Settled waits until all nodes are there and follow, and have so many full replicas together, none on the way. ctx bounds the wait.
func (c *Cluster) Settled(ctx context.Context, replicas int) error {
	for {
		var problem string
		list, err := c.Nodes[0].Members(ctx)
		full := 0
		for _, m := range list {
			full += m.Full
			if !m.Alive || m.Joining > 0 || m.Follow != "streaming" {
				problem = fmt.Sprintf("%+v", m)
			}
		}
		if err == nil && problem == "" && full == replicas && len(list) == len(c.Nodes) {
			return nil
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("the cluster does not settle: %d of %d replicas, %s, error %v: %w", full, replicas, problem, err, context.Cause(ctx))
		case <-time.After(100 * time.Millisecond):
		}
	}
}

// Readable waits until every node reads at an LSN. ctx bounds the wait.
func (c *Cluster) Readable(ctx context.Context, at pg.LSN) error {
	for {
		var behind string
		list, err := c.Nodes[0].Members(ctx)
		for _, m := range list {
			if lsn, err := pg.ParseLSN(m.Readable); err != nil || lsn < at {
				behind = fmt.Sprintf("%s reads up to %s", m.Name, m.Readable)
			}
		}
		if err == nil && behind == "" && len(list) == len(c.Nodes) {
			return nil
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("not all nodes read at %s: %s, error %v: %w", at, behind, err, context.Cause(ctx))
		case <-time.After(100 * time.Millisecond):
		}
	}
}
