package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"strconv"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"
	"gopkg.in/yaml.v3"

	"everpage/pageapi"
)

// globals are the flags that every command has.
type globals struct {
	server  string
	output  string
	quiet   bool
	timeout time.Duration
	config  string
}

func (g *globals) flags(f *pflag.FlagSet) {
	f.StringVar(&g.server, "server", "127.0.0.1:5430", "nodes to ask, `HOST:PORT[,HOST:PORT…]`")
	f.StringVarP(&g.output, "output", "o", "table", "`table` or json")
	f.BoolVar(&g.quiet, "quiet", false, "no progress")
	f.DurationVar(&g.timeout, "timeout", 10*time.Second, "how long a read may take")
	f.StringVar(&g.config, "config", "", "YAML `file` with flags by name")
}

// complete fills the flags that were not given from the environment, then from the YAML file.
func (g *globals) complete(cmd *cobra.Command) error {
	if v, ok := os.LookupEnv("EVERPAGE_CONFIG"); ok && !cmd.Flags().Changed("config") {
		g.config = v
	}
	file, err := readConfig(g.config)
	if err != nil {
		return usageError{err}
	}
	var errs []error
	cmd.Flags().VisitAll(func(f *pflag.Flag) {
		value, inFile := file[f.Name]
		delete(file, f.Name)
		env := "EVERPAGE_" + strings.ToUpper(strings.ReplaceAll(f.Name, "-", "_"))
		switch v, ok := os.LookupEnv(env); {
		case f.Changed || f.Name == "config" || f.Name == "help":
		case ok:
			if err := cmd.Flags().Set(f.Name, v); err != nil {
				errs = append(errs, fmt.Errorf("environment %s: %w", env, err))
			}
		case inFile:
			if err := cmd.Flags().Set(f.Name, value); err != nil {
				errs = append(errs, fmt.Errorf("%s: %s: %w", g.config, f.Name, err))
			}
		}
	})
	for name := range file {
		if !knownFlag(cmd.Root(), name) {
			errs = append(errs, fmt.Errorf("%s: unknown key %q", g.config, name))
		}
	}
	if g.output != "table" && g.output != "json" {
		errs = append(errs, fmt.Errorf("-o %s: want table or json", g.output))
	}
	if g.timeout <= 0 {
		errs = append(errs, fmt.Errorf("--timeout %s: want more than 0", g.timeout))
	}
	if err := errors.Join(errs...); err != nil {
		return usageError{err}
	}
	return nil
}

// knownFlag tells whether any command has the flag: one file may serve several commands.
func knownFlag(c *cobra.Command, name string) bool {
	if c.LocalFlags().Lookup(name) != nil {
		return true
	}
	for _, sub := range c.Commands() {
		if knownFlag(sub, name) {
			return true
		}
	}
	return false
}

func readConfig(path string) (map[string]string, error) {
	if path == "" {
		return nil, nil
	}
	b, err := os.ReadFile(path)
	if err != nil {
		return nil, err
	}
	raw := map[string]any{}
	if err := yaml.NewDecoder(bytes.NewReader(b)).Decode(&raw); err != nil && !errors.Is(err, io.EOF) {
		return nil, fmt.Errorf("%s: %w", path, err)
	}
	flat := map[string]string{}
	for k, v := range raw {
		switch v := v.(type) {
		case []any:
			parts := make([]string, len(v))
			for i, p := range v {
				parts[i] = fmt.Sprint(p)
			}
			flat[k] = strings.Join(parts, ",")
		case map[string]any:
			return nil, fmt.Errorf("%s: %s: want a value, not a section", path, k)
		default:
			flat[k] = fmt.Sprint(v)
		}
	}
	return flat, nil
}

// client connects to the cluster; the caller closes it.
func (g *globals) client() (*pageapi.Client, error) {
	servers := strings.Split(g.server, ",")
	for _, s := range servers {
		_, port, err := net.SplitHostPort(s)
		if n, perr := strconv.ParseUint(port, 10, 16); s != "" && (err != nil || perr != nil || n == 0) {
			return nil, usageError{fmt.Errorf("--server %s: want HOST:PORT[,HOST:PORT…]", s)}
		}
	}
	return pageapi.NewClient(servers)
}

// withClient runs fn with a client and a context that ends after --timeout.
func (g *globals) withClient(ctx context.Context, fn func(context.Context, *pageapi.Client) error) error {
	c, err := g.client()
	if err != nil {
		return err
	}
	defer c.Close()
	ctx, cancel := context.WithTimeout(ctx, g.timeout)
	defer cancel()
	return fn(ctx, c)
}

// print writes v as JSON, or calls table.
func (g *globals) print(w io.Writer, v any, table func(w io.Writer) error) error {
	if g.output == "json" {
		e := json.NewEncoder(w)
		e.SetIndent("", "  ")
		return e.Encode(v)
	}
	return table(w)
}

// columns writes rows in aligned columns.
func columns(w io.Writer, rows ...[]string) error {
	t := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	for _, r := range rows {
		fmt.Fprintln(t, strings.Join(r, "\t"))
	}
	return t.Flush()
}

// size prints bytes as pg_size_pretty does.
func size[T ~int64 | ~uint64 | ~int](n T) string {
	v, units := float64(n), []string{"bytes", "kB", "MB", "GB", "TB", "PB"}
	i := 0
	for v >= 10240 && i < len(units)-1 {
		v /= 1024
		i++
	}
	return fmt.Sprintf("%.0f %s", v, units[i])
}
