package main

import (
	"context"
	"fmt"
	"io"
	"strconv"
	"strings"

	"github.com/spf13/cobra"

	"everpage/pageapi"
	pb "everpage/pageapi/pagepb/everpage/v1"
	"everpage/wal/pg"
)

func newChunk(g *globals) *cobra.Command {
	c := &cobra.Command{Use: "chunk", Short: "Chunks (segments of relations) and the nodes that clients read them from"}
	c.AddCommand(newChunkList(g), newChunkShow(g), newChunkMove(g))
	return c
}

// chunkArg is REL[.SEGMENT].
func chunkArg(s, fork string) (*pb.ChunkName, error) {
	name, segment, cut := strings.Cut(s, ".")
	n := uint64(0)
	if cut {
		var err error
		if n, err = strconv.ParseUint(segment, 10, 32); err != nil {
			return nil, usageError{fmt.Errorf("segment %q: want a number", segment)}
		}
	}
	rel, err := relArg(name, fork)
	if err != nil {
		return nil, err
	}
	return &pb.ChunkName{Rel: &pb.RelFork{Spc: rel.Spc, Db: rel.DB, Rel: rel.Rel, Fork: uint32(rel.Fork)}, Segment: uint32(n)}, nil
}

const chunkHelp = "A chunk is one segment of a relation fork: REL or REL.SEGMENT, as PostgreSQL names its files. " + relHelp

// listChunks asks until all are there.
func listChunks(ctx context.Context, admin pb.AdminServiceClient, r *pb.ListChunksRequest) ([]*pb.ChunkInfo, error) {
	list := []*pb.ChunkInfo{}
	for {
		resp, err := admin.ListChunks(ctx, r)
		if err != nil {
			return nil, err
		}
		list = append(list, resp.Chunks...)
		if !resp.More || len(resp.Chunks) == 0 {
			return list, nil
		}
		r.After = resp.Chunks[len(resp.Chunks)-1].Chunk
	}
}

func newChunkList(g *globals) *cobra.Command {
	var apart bool
	var fork string
	c := &cobra.Command{
		Use:     "list [REL]",
		Short:   "The chunks that there are now, and their replicas",
		Long:    "The chunks that there are now, and their replicas.\n\n" + relHelp,
		Example: "  everpage chunk list --apart",
		Args:    cobra.MaximumNArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			req := &pb.ListChunksRequest{Apart: apart}
			if len(args) == 1 {
				name, err := chunkArg(args[0], fork)
				if err != nil {
					return err
				}
				req.Rel = name.Rel
			}
			return g.withAdmin(cmd.Context(), func(ctx context.Context, admin pb.AdminServiceClient) error {
				list, err := listChunks(ctx, admin, req)
				if err != nil {
					return err
				}
				return g.print(cmd.OutOrStdout(), list, func(w io.Writer) error { return printChunks(w, list) })
			})
		},
	}
	c.Flags().BoolVar(&apart, "apart", false, "only those that have replicas of their own")
	c.Flags().StringVar(&fork, "fork", "main", "main, fsm, vm or init")
	return c
}

func newChunkShow(g *globals) *cobra.Command {
	var fork string
	c := &cobra.Command{
		Use:     "show CHUNK",
		Short:   "One chunk and its replicas",
		Long:    "One chunk and its replicas.\n\n" + chunkHelp,
		Example: "  everpage chunk show base/5/16384.2",
		Args:    cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			name, err := chunkArg(args[0], fork)
			if err != nil {
				return err
			}
			return g.withAdmin(cmd.Context(), func(ctx context.Context, admin pb.AdminServiceClient) error {
				list, err := listChunks(ctx, admin, &pb.ListChunksRequest{Rel: name.Rel, One: true, Segment: name.Segment})
				if err != nil {
					return err
				}
				if len(list) == 0 {
					return pageapi.Errorf(pageapi.NotFound, "chunk %s does not exist now", args[0])
				}
				return g.print(cmd.OutOrStdout(), list[0], func(w io.Writer) error { return printChunks(w, list) })
			})
		},
	}
	c.Flags().StringVar(&fork, "fork", "main", "main, fsm, vm or init")
	return c
}

func newChunkMove(g *globals) *cobra.Command {
	var fork, from string
	var home bool
	c := &cobra.Command{
		Use:   "move CHUNK [NODE]",
		Short: "Have clients read a chunk from a node",
		Long: `Have clients read a chunk from a node: it gets replicas of its own, at first those of its shard, and one on that node. With --from the replica of another
node goes as soon as the new one has all; reads go on meanwhile. --home gives the chunk back to its shard, whose replicas keep it all along.

` + chunkHelp,
		Example: "  everpage chunk move base/5/16384.2 node4 --from node1\n  everpage chunk move base/5/16384.2 --home",
		Args:    cobra.RangeArgs(1, 2),
		RunE: func(cmd *cobra.Command, args []string) error {
			name, err := chunkArg(args[0], fork)
			if err != nil {
				return err
			}
			req := &pb.MoveChunkRequest{Chunk: name, From: from}
			if home == (len(args) == 2) {
				return usageError{fmt.Errorf("name a node, or say --home")}
			}
			if !home {
				req.To = args[1]
			}
			return g.withAdmin(cmd.Context(), func(ctx context.Context, admin pb.AdminServiceClient) error {
				_, err := admin.MoveChunk(ctx, req)
				return err
			})
		},
	}
	c.Flags().StringVar(&fork, "fork", "main", "main, fsm, vm or init")
	c.Flags().StringVar(&from, "from", "", "`node` whose replica goes")
	c.Flags().BoolVar(&home, "home", false, "the chunk goes back to its shard")
	return c
}

func printChunks(w io.Writer, list []*pb.ChunkInfo) error {
	rows := [][]string{{"CHUNK", "BLOCKS", "SHARD", "BORN", "IN STORE TO", "NOTES", "REPLICAS"}}
	lsn := func(at uint64) string {
		if at == 0 {
			return "-"
		}
		return pg.LSN(at).String()
	}
	for _, c := range list {
		notes := []string{}
		switch {
		case c.Pinned:
			notes = append(notes, "pinned")
		case c.Apart:
			notes = append(notes, "own replicas")
		}
		if c.Damaged {
			notes = append(notes, "damaged")
		}
		if c.UnprovenLsn != 0 {
			notes = append(notes, "unproven from "+pg.LSN(c.UnprovenLsn).String())
		}
		rows = append(rows, []string{c.Name, strconv.Itoa(int(c.Blocks)), strconv.Itoa(int(c.Shard)), lsn(c.BornLsn), lsn(c.BackedLsn), strings.Join(notes, ", "),
			replicaNames(c.Replicas)})
	}
	return columns(w, rows...)
}
