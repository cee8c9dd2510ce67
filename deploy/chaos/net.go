package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"strings"
)

// network is a bridge of its own with one network namespace a node, so that links between nodes can be cut, in one direction too, while servers, clients and other
// runs on the machine notice nothing. It needs root, ip and nft.
type network struct {
	prefix string // of the names of links and namespaces
	subnet string // first three numbers of the addresses
	nodes  int
}

// newNetwork makes the network. number tells apart networks that exist at the same time.
func newNetwork(ctx context.Context, number, nodes int) (*network, error) {
	n := &network{prefix: fmt.Sprintf("evc%d", number), subnet: fmt.Sprintf("10.213.%d", number%256), nodes: nodes}
	for _, tool := range []string{"ip", "nft"} {
		if _, err := exec.LookPath(tool); err != nil {
			return nil, fmt.Errorf("%w: partitions need it: deploy/chaos/tools.sh installs it", err)
		}
	}
	steps := []string{"ip link add " + n.bridge() + " type bridge", "ip addr add " + n.host() + "/24 dev " + n.bridge(), "ip link set " + n.bridge() + " up"}
	for i := range nodes {
		ns, outer, inner := n.namespace(i), n.outer(i), fmt.Sprintf("%s-i%d", n.prefix, i)
		steps = append(steps, "ip netns add "+ns, "ip link add "+outer+" type veth peer name "+inner, "ip link set "+inner+" netns "+ns,
			"ip link set "+outer+" master "+n.bridge(), "ip link set "+outer+" up",
			"ip -n "+ns+" addr add "+n.address(i)+"/24 dev "+inner, "ip -n "+ns+" link set "+inner+" up", "ip -n "+ns+" link set lo up")
	}
	for _, s := range steps {
		if err := command(ctx, s); err != nil {
			return nil, errors.Join(err, n.close())
		}
	}
	return n, nil
}

func command(ctx context.Context, line string) error {
	f := strings.Fields(line)
	if out, err := exec.CommandContext(ctx, f[0], f[1:]...).CombinedOutput(); err != nil {
		return fmt.Errorf("%s: %w: %s", line, err, out)
	}
	return nil
}

func (n *network) bridge() string         { return n.prefix }
func (n *network) host() string           { return n.subnet + ".1" }
func (n *network) namespace(i int) string { return fmt.Sprintf("%s-%d", n.prefix, i+1) }
func (n *network) outer(i int) string     { return fmt.Sprintf("%s-o%d", n.prefix, i) }
func (n *network) address(i int) string   { return fmt.Sprintf("%s.%d", n.subnet, 11+i) }

func (n *network) close() error {
	ctx := context.Background()
	var errs []error
	for i := range n.nodes {
		// At once, both ends: a namespace takes its end away some time after it was deleted.
		if _, err := os.Stat("/sys/class/net/" + n.outer(i)); err == nil {
			errs = append(errs, command(ctx, "ip link del "+n.outer(i)))
		}
		if _, err := os.Stat("/var/run/netns/" + n.namespace(i)); err == nil {
			errs = append(errs, command(ctx, "ip netns del "+n.namespace(i)))
		}
	}
	if _, err := os.Stat("/sys/class/net/" + n.bridge()); err == nil {
		errs = append(errs, command(ctx, "ip link del "+n.bridge()))
	}
	return errors.Join(errs...)
}

// rules gives one node rules for what comes in and goes out. Each stands for packets from or to one of the addresses.
func (n *network) rules(ctx context.Context, node int, in, out string, addresses ...string) error {
	var script strings.Builder
	fmt.Fprintln(&script, "table inet chaos {")
	for _, c := range []struct{ name, match, verdict string }{{"input", "saddr", in}, {"output", "daddr", out}} {
		if c.verdict == "" {
			continue
		}
		fmt.Fprintf(&script, "chain %s { type filter hook %s priority 0;\n", c.name, c.name)
		for _, a := range addresses {
			fmt.Fprintf(&script, "ip %s %s %s\n", c.match, a, c.verdict)
		}
		fmt.Fprintln(&script, "}")
	}
	fmt.Fprintln(&script, "}")
	cmd := exec.CommandContext(ctx, "ip", "netns", "exec", n.namespace(node), "nft", "-f", "-")
	cmd.Stdin = strings.NewReader(script.String())
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("nft: %w: %s", err, out)
	}
	return nil
}

// heal takes a node's rules away.
func (n *network) heal(ctx context.Context, node int) error {
	return command(ctx, "ip netns exec "+n.namespace(node)+" nft delete table inet chaos")
}

// others are the addresses of all other nodes.
func (n *network) others(node int) []string {
	var list []string
	for i := range n.nodes {
		if i != node {
			list = append(list, n.address(i))
		}
	}
	return list
}
