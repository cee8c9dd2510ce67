package pageapi

import (
	"encoding/binary"

	"github.com/cespare/xxhash/v2"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"

	"everpage/wal/pg"
)

// pagesChecksum binds pages to what was asked for: it differs if a page of another block, relation, branch or LSN is answered.
func pagesChecksum(at Position, rel pg.RelFork, blocks []pg.BlockNumber, pages []byte) uint64 {
	var head [32]byte
	binary.LittleEndian.PutUint32(head[0:], at.Branch)
	binary.LittleEndian.PutUint64(head[4:], uint64(at.LSN))
	binary.LittleEndian.PutUint32(head[12:], rel.Spc)
	binary.LittleEndian.PutUint32(head[16:], rel.DB)
	binary.LittleEndian.PutUint32(head[20:], rel.Rel)
	binary.LittleEndian.PutUint32(head[24:], uint32(rel.Fork))
	binary.LittleEndian.PutUint32(head[28:], uint32(len(blocks)))
	var d xxhash.Digest
	d.Reset()
	d.Write(head[:])
	var b [4]byte
	for _, n := range blocks {
		binary.LittleEndian.PutUint32(b[:], n)
		d.Write(b[:])
	}
	d.Write(pages)
	return d.Sum64()
}

// summed is an answer that carries a checksum.
type summed interface {
	proto.Message
	GetChecksum() uint64
}

// answerSum is the checksum of an answer other than pages, see page.proto. number is the message's in a streamed answer, else negative.
func answerSum(method string, req proto.Message, number int, resp summed) (uint64, error) {
	opt := proto.MarshalOptions{Deterministic: true}
	var d xxhash.Digest
	d.Reset()
	d.WriteString(method)
	d.Write([]byte{0})
	asked, err := opt.Marshal(req)
	if err != nil {
		return 0, err
	}
	var n [8]byte
	binary.LittleEndian.PutUint64(n[:], uint64(len(asked)))
	d.Write(n[:])
	d.Write(asked)
	if number >= 0 {
		binary.LittleEndian.PutUint64(n[:], uint64(number))
		d.Write(n[:])
	}
	carried := resp.GetChecksum()
	setChecksum(resp, 0)
	defer setChecksum(resp, carried)
	answer, err := opt.Marshal(resp)
	if err != nil {
		return 0, err
	}
	d.Write(answer)
	return max(1, d.Sum64()), nil // 0 would be left out on the wire
}

func setChecksum(m summed, sum uint64) {
	r := m.ProtoReflect()
	r.Set(r.Descriptor().Fields().ByName("checksum"), protoreflect.ValueOfUint64(sum))
}

// seal puts the checksum into an answer of the server.
func seal[T summed](method string, req proto.Message, number int, resp T) (T, error) {
	sum, err := answerSum(method, req, number, resp)
	setChecksum(resp, sum)
	return resp, toGRPC(err)
}

// unary is the number of an answer that is not streamed.
const unary = -1

// check verifies the checksum of an answer that the client got.
func check(address, method string, req proto.Message, number int, resp summed) error {
	sum, err := answerSum(method, req, number, resp)
	if err != nil {
		return err
	}
	if sum != resp.GetChecksum() {
		return Errorf(Corrupt, "node %s: the answer to %s does not fit its checksum: it was damaged on the way, or answers something else", address, method)
	}
	return nil
}
