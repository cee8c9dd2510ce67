package pageapi

import (
	"context"
	"errors"
	"io"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"

	"everpage/cluster/placement"
	pb "everpage/pageapi/pagepb/everpage/v1"
	"everpage/wal/pg"
)

// Any client of the protobuf files understands what is written by hand.
func TestThePlainCodecUnderstandsAnswers(t *testing.T) {
	n := newFakeNode(t, nil)
	n.shardMap.Store(placement.Single(placement.Node{Name: "n", Address: n.address}, 64, pg.SegmentBlocks))
	conn, err := grpc.NewClient("passthrough:///"+n.address, grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	stream, err := pb.NewPageServiceClient(conn).GetPages(ctx)
	if err != nil {
		t.Fatal(err)
	}
	request := func(blocks ...pg.BlockNumber) *pb.GetPagesRequest {
		return &pb.GetPagesRequest{Id: 7, At: &pb.Position{Lsn: 500}, Rel: relToWire(testRel), Blocks: blocks}
	}
	for range 2 { // pipelined
		if err := stream.Send(request(3, 900, 3)); err != nil {
			t.Fatal(err)
		}
	}
	for range 2 {
		resp, err := stream.Recv()
		if err != nil {
			t.Fatal(err)
		}
		if resp.Id != 7 || resp.Lsn != 500 || resp.Readable != 1000 || resp.Rel.Rel != testRel.Rel || len(resp.Blocks) != 3 || resp.Status.GetCode() != OK ||
			len(resp.Pages) != 3*pg.BlockSize || resp.Checksum != pagesChecksum(Position{LSN: 500}, testRel, resp.Blocks, resp.Pages) {
			t.Errorf("got %d bytes of pages, blocks %v", len(resp.Pages), resp.Blocks)
		}
	}
	if err := stream.Send(request(3, 5000)); err != nil {
		t.Fatal(err)
	}
	if resp, err := stream.Recv(); err != nil || resp.Status.GetCode() != NotFound || len(resp.Pages) != 0 {
		t.Errorf("a block that doesn't exist: %v, %v", resp, err)
	}
	if err := stream.CloseSend(); err != nil {
		t.Fatal(err)
	}
	if _, err := stream.Recv(); !errors.Is(err, io.EOF) {
		t.Errorf("the end of the stream: %v", err)
	}
}
