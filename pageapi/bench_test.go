package pageapi

import (
	"io"
	"net"
	"testing"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"

	"everpage/cluster/placement"
	pb "everpage/pageapi/pagepb/everpage/v1"
	"everpage/wal/pg"
)

// BenchmarkPage reads over the loopback address from a server that has nothing to look up, beside an echo of the same bytes and the same call through gRPC's
// library.
func BenchmarkPage(b *testing.B) {
	n := newFakeNode(b, nil)
	n.shardMap.Store(placement.Single(placement.Node{Name: "n", Address: n.address}, 64, pg.SegmentBlocks))
	for _, size := range []int{1, 32, 256} {
		name := map[int]string{1: "1", 32: "32", 256: "256"}[size]
		blocks := make([]pg.BlockNumber, size)
		for i := range blocks {
			blocks[i] = pg.BlockNumber(i * 3)
		}
		dst := make([]byte, size*pg.BlockSize)
		b.Run("client/"+name, func(b *testing.B) {
			c := newTestClient(b, n.address)
			b.SetBytes(int64(len(dst)))
			b.ReportAllocs()
			for b.Loop() {
				if _, err := c.Pages(b.Context(), Position{LSN: 500}, testRel, blocks, dst); err != nil {
					b.Fatal(err)
				}
			}
		})
		b.Run("grpc/"+name, func(b *testing.B) {
			conn, err := grpc.NewClient("passthrough:///"+n.address, grpc.WithTransportCredentials(insecure.NewCredentials()),
				grpc.WithDefaultCallOptions(grpc.MaxCallRecvMsgSize(16<<20)), grpc.WithInitialWindowSize(4<<20), grpc.WithInitialConnWindowSize(8<<20))
			if err != nil {
				b.Fatal(err)
			}
			defer conn.Close()
			stream, err := pb.NewPageServiceClient(conn).GetPages(b.Context(), grpc.ForceCodecV2(newCodec()))
			if err != nil {
				b.Fatal(err)
			}
			b.SetBytes(int64(len(dst)))
			b.ReportAllocs()
			answer := pagesAnswer{dst: dst}
			for b.Loop() {
				req := &pb.GetPagesRequest{At: &pb.Position{Lsn: 500}, Rel: relToWire(testRel), Blocks: blocks}
				if err := stream.SendMsg(req); err != nil {
					b.Fatal(err)
				}
				if err := stream.RecvMsg(&answer); err != nil || answer.n != len(dst) {
					b.Fatal(answer.n, err)
				}
			}
		})
		b.Run("echo/"+name, func(b *testing.B) {
			address := echo(b, len(dst))
			conn, err := net.Dial("tcp", address)
			if err != nil {
				b.Fatal(err)
			}
			defer conn.Close()
			b.SetBytes(int64(len(dst)))
			for b.Loop() {
				if _, err := conn.Write(dst[:64]); err != nil {
					b.Fatal(err)
				}
				if _, err := io.ReadFull(conn, dst); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}

// echo answers n bytes to each 64 bytes.
func echo(b *testing.B, n int) string {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		b.Fatal(err)
	}
	done := make(chan struct{})
	go func() {
		defer close(done)
		conn, err := l.Accept()
		if err != nil {
			return
		}
		defer conn.Close()
		request, answer := make([]byte, 64), make([]byte, n)
		for {
			if _, err := io.ReadFull(conn, request); err != nil {
				return
			}
			if _, err := conn.Write(answer); err != nil {
				return
			}
		}
	}()
	b.Cleanup(func() { l.Close(); <-done })
	return l.Addr().String()
}
