package pageapi

import (
	"errors"
	"fmt"
	"io"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/encoding"
	"google.golang.org/grpc/encoding/proto" // also registers the codec that all other messages go through
	"google.golang.org/grpc/keepalive"
	"google.golang.org/grpc/mem"
	"google.golang.org/protobuf/encoding/protowire"
	protobuf "google.golang.org/protobuf/proto"

	pb "everpage/pageapi/pagepb/everpage/v1"
	"everpage/wal/pg"
)

// pagesAnswer is a GetPagesResponse as both ends hold it: the pages are not copied into a message and out of it again.
type pagesAnswer struct {
	id       uint64
	status   *pb.Status
	lsn      pg.LSN
	readable pg.LSN
	rel      pg.RelFork
	blocks   []uint32
	checksum uint64
	shardMap *pb.GetShardMapResponse

	pages mem.Buffer // of the server; marshalling hands it over
	dst   []byte     // of the client: where pages go
	n     int        // bytes of pages that came

	broken error // why the message could not be read: it counts as a wrong checksum does
}

// drop gives back the pages of an answer that was never sent.
func (a *pagesAnswer) drop() {
	if a.pages != nil {
		a.pages.Free()
		a.pages = nil
	}
}

// Fields of GetPagesResponse and RelFork.
const (
	fieldID, fieldStatus, fieldLSN, fieldRel, fieldBlocks, fieldPages, fieldChecksum, fieldMap, fieldReadable = 1, 2, 3, 4, 5, 6, 7, 8, 9
	fieldSpc, fieldDB, fieldRelNumber, fieldFork                                                              = 1, 2, 3, 4
)

// codec writes and reads GetPagesResponse by hand and leaves every other message to the usual one.
type codec struct{ encoding.CodecV2 }

func newCodec() codec { return codec{encoding.GetCodecV2(proto.Name)} }

// Marshal implements encoding.CodecV2.
func (c codec) Marshal(v any) (mem.BufferSlice, error) {
	a, ok := v.(*pagesAnswer)
	if !ok {
		return c.CodecV2.Marshal(v)
	}
	head, err := a.appendHead(make([]byte, 0, 96+2*len(a.blocks)))
	if err != nil {
		return nil, err
	}
	out := mem.BufferSlice{mem.SliceBuffer(head)}
	if a.pages != nil {
		out = append(out, a.pages)
		a.pages = nil
	}
	return out, nil
}

// appendHead writes everything but the content of pages, which comes last.
func (a *pagesAnswer) appendHead(b []byte) ([]byte, error) {
	number := func(field protowire.Number, v uint64) {
		if v != 0 {
			b = protowire.AppendVarint(protowire.AppendTag(b, field, protowire.VarintType), v)
		}
	}
	message := func(field protowire.Number, m protobuf.Message) error {
		content, err := protobuf.Marshal(m)
		b = protowire.AppendBytes(protowire.AppendTag(b, field, protowire.BytesType), content)
		return err
	}
	number(fieldID, a.id)
	if a.status != nil {
		if err := message(fieldStatus, a.status); err != nil {
			return nil, err
		}
	}
	number(fieldLSN, uint64(a.lsn))
	if a.rel != (pg.RelFork{}) {
		if err := message(fieldRel, relToWire(a.rel)); err != nil {
			return nil, err
		}
	}
	if len(a.blocks) > 0 {
		n := 0
		for _, block := range a.blocks {
			n += protowire.SizeVarint(uint64(block))
		}
		b = protowire.AppendVarint(protowire.AppendTag(b, fieldBlocks, protowire.BytesType), uint64(n))
		for _, block := range a.blocks {
			b = protowire.AppendVarint(b, uint64(block))
		}
	}
	number(fieldChecksum, a.checksum)
	number(fieldReadable, uint64(a.readable))
	if a.shardMap != nil {
		if err := message(fieldMap, a.shardMap); err != nil {
			return nil, err
		}
	}
	if a.pages != nil {
		b = protowire.AppendVarint(protowire.AppendTag(b, fieldPages, protowire.BytesType), uint64(a.pages.Len()))
	}
	return b, nil
}

// Unmarshal implements encoding.CodecV2.
func (c codec) Unmarshal(data mem.BufferSlice, v any) error {
	a, ok := v.(*pagesAnswer)
	if !ok {
		return c.CodecV2.Unmarshal(data, v)
	}
	*a = pagesAnswer{dst: a.dst, blocks: a.blocks[:0]}
	r := data.Reader()
	defer r.Close()
	a.broken = a.read(r)
	return nil
}

var errAnswer = errors.New("malformed GetPagesResponse")

// answerReader gives the bytes of one message.
type answerReader interface {
	io.Reader
	io.ByteReader
	Remaining() int
}

func (a *pagesAnswer) read(r answerReader) error {
	for r.Remaining() > 0 {
		tag, err := readVarint(r)
		if err != nil {
			return err
		}
		field, kind := protowire.DecodeTag(tag)
		switch kind {
		case protowire.VarintType:
			v, err := readVarint(r)
			if err != nil {
				return err
			}
			a.number(field, v)
		case protowire.BytesType:
			n, err := readVarint(r)
			if err != nil || n > uint64(r.Remaining()) {
				return errAnswer
			}
			if field == fieldPages {
				if n > uint64(len(a.dst)) {
					return fmt.Errorf("%w: %d bytes of pages where at most %d were asked for", errAnswer, n, len(a.dst))
				}
				a.n = int(n)
				if _, err := io.ReadFull(r, a.dst[:n]); err != nil {
					return err
				}
				continue
			}
			content := make([]byte, n)
			if _, err := io.ReadFull(r, content); err != nil {
				return err
			}
			if err := a.content(field, content); err != nil {
				return err
			}
		case protowire.Fixed32Type, protowire.Fixed64Type: // of a later version
			n := 4
			if kind == protowire.Fixed64Type {
				n = 8
			}
			if _, err := io.CopyN(io.Discard, r, int64(n)); err != nil {
				return err
			}
		default:
			return errAnswer
		}
	}
	return nil
}

func (a *pagesAnswer) number(field protowire.Number, v uint64) {
	switch field {
	case fieldID:
		a.id = v
	case fieldLSN:
		a.lsn = pg.LSN(v)
	case fieldChecksum:
		a.checksum = v
	case fieldReadable:
		a.readable = pg.LSN(v)
	}
}

func (a *pagesAnswer) content(field protowire.Number, b []byte) error {
	switch field {
	case fieldStatus:
		a.status = &pb.Status{}
		return protobuf.Unmarshal(b, a.status)
	case fieldMap:
		a.shardMap = &pb.GetShardMapResponse{}
		return protobuf.Unmarshal(b, a.shardMap)
	case fieldRel:
		rel := &pb.RelFork{}
		if err := protobuf.Unmarshal(b, rel); err != nil {
			return err
		}
		var err error
		a.rel, err = relFromWire(rel)
		return err
	case fieldBlocks:
		for len(b) > 0 {
			v, n := protowire.ConsumeVarint(b)
			if n < 0 || v > 1<<32-1 {
				return errAnswer
			}
			a.blocks = append(a.blocks, uint32(v))
			b = b[n:]
		}
	}
	return nil
}

func readVarint(r io.ByteReader) (v uint64, err error) {
	for shift := uint(0); shift < 64; shift += 7 {
		c, err := r.ReadByte()
		if err == io.EOF {
			return 0, errAnswer
		}
		if err != nil {
			return 0, err
		}
		v |= uint64(c&0x7f) << shift
		if c < 0x80 {
			return v, nil
		}
	}
	return 0, errAnswer
}

// ServerOptions are what a gRPC server must be made with to serve a Server.
func ServerOptions() []grpc.ServerOption {
	return []grpc.ServerOption{
		grpc.ForceServerCodecV2(newCodec()),
		grpc.InitialWindowSize(1 << 20), grpc.InitialConnWindowSize(4 << 20), grpc.MaxConcurrentStreams(maxStreamsOfConnection),
		grpc.KeepaliveParams(keepalive.ServerParameters{Time: 30 * time.Second, Timeout: 10 * time.Second}),
		grpc.KeepaliveEnforcementPolicy(keepalive.EnforcementPolicy{MinTime: 5 * time.Second, PermitWithoutStream: true}),
	}
}
