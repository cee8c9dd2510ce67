package main

import (
	"context"
	"fmt"
	"net"
	"slices"
	"time"

	"golang.org/x/sync/errgroup"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/mem"
)

// The bare stream is what gRPC itself takes: another process that sends pages on a bidirectional stream, where nothing is read, encoded or summed.
// What page reads take beyond it is ours.

const streamArg = "stream-server"

// bytesCodec sends and receives bytes as they are.
type bytesCodec struct{}

type bytesMessage struct{ b []byte }

func (bytesCodec) Name() string { return "bytes" }

func (bytesCodec) Marshal(v any) (mem.BufferSlice, error) {
	return mem.BufferSlice{mem.SliceBuffer(v.(*bytesMessage).b)}, nil
}

func (bytesCodec) Unmarshal(data mem.BufferSlice, v any) error {
	m := v.(*bytesMessage)
	if n := data.Len(); n > len(m.b) {
		return fmt.Errorf("%d bytes came, %d were expected", n, len(m.b))
	}
	m.b = m.b[:data.CopyTo(m.b)]
	return nil
}

// serveStream is the other process: it answers each request, whose first two bytes are a number of pages, with so many.
func serveStream() error {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return err
	}
	fmt.Println(l.Addr())
	pages := make([]byte, 256*echoPage)
	s := grpc.NewServer(grpc.ForceServerCodecV2(bytesCodec{}))
	s.RegisterService(&grpc.ServiceDesc{ServiceName: "bench", HandlerType: (*any)(nil), Streams: []grpc.StreamDesc{{
		StreamName: "pages", ServerStreams: true, ClientStreams: true,
		Handler: func(_ any, stream grpc.ServerStream) error {
			buf := make([]byte, shortRequest)
			for {
				req := bytesMessage{buf}
				if err := stream.RecvMsg(&req); err != nil {
					return nil // the client is done
				}
				if err := stream.SendMsg(&bytesMessage{pages[:(int(req.b[0])+int(req.b[1])<<8)*echoPage]}); err != nil {
					return err
				}
			}
		},
	}}}, struct{}{})
	return s.Serve(l)
}

// measureStream measures as measureEcho does, with depth pages in one message as page reads have them.
func (b *bench) measureStream(ctx context.Context, clients, depth int, d time.Duration) (e echo, err error) {
	address, stop, err := b.start(ctx, streamArg)
	if err != nil {
		return e, err
	}
	defer func() { err = stop(err) }()
	conn, err := grpc.NewClient("passthrough:///"+address, grpc.WithTransportCredentials(insecure.NewCredentials()),
		grpc.WithDefaultCallOptions(grpc.ForceCodecV2(bytesCodec{}), grpc.MaxCallRecvMsgSize(16<<20)),
		grpc.WithInitialWindowSize(4<<20), grpc.WithInitialConnWindowSize(8<<20))
	if err != nil {
		return e, err
	}
	defer conn.Close()
	if _, err := streamPages(ctx, conn, 1, d/5); err != nil { // warms up
		return e, err
	}
	took, err := streamPages(ctx, conn, 1, d)
	if err != nil {
		return e, err
	}
	slices.Sort(took)
	e.p50 = float64(took[len(took)/2].Nanoseconds()) / 1000
	counts := make([]int, clients)
	g, gctx := errgroup.WithContext(ctx)
	began := time.Now()
	for i := range counts {
		g.Go(func() error {
			took, err := streamPages(gctx, conn, depth, d)
			counts[i] = len(took) * depth
			return err
		})
	}
	if err := g.Wait(); err != nil {
		return e, err
	}
	sum := 0
	for _, n := range counts {
		sum += n
	}
	e.pagesPerSecond = float64(sum) / time.Since(began).Seconds()
	return e, nil
}

// streamPages asks for n pages at a time.
func streamPages(ctx context.Context, conn *grpc.ClientConn, n int, d time.Duration) (took []time.Duration, err error) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	stream, err := conn.NewStream(ctx, &grpc.StreamDesc{ServerStreams: true, ClientStreams: true}, "/bench/pages")
	if err != nil {
		return nil, err
	}
	request, buf := make([]byte, shortRequest), make([]byte, n*echoPage)
	request[0], request[1] = byte(n), byte(n>>8)
	for end := time.Now().Add(d); ; {
		began := time.Now()
		if began.After(end) && len(took) > 0 {
			return took, nil
		}
		if err := stream.SendMsg(&bytesMessage{request}); err != nil {
			return nil, err
		}
		if err := stream.RecvMsg(&bytesMessage{buf}); err != nil {
			return nil, err
		}
		took = append(took, time.Since(began))
	}
}
