package backup

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"hash/crc32"
	"strconv"
	"strings"

	"everpage/backup/store"
	"everpage/cluster/placement"
	"everpage/wal/pg"
)

// Formats that this release writes and reads.
const (
	manifestFormat = 1
	rootFormat     = 1
)

// Small is the shard under which all that is small of a branch goes: what every node keeps whole.
const Small placement.Shard = 65535

// Ref names a manifest: a part of an object. Its text is what the registry keeps.
type Ref struct {
	Object         string
	Offset, Length int64
	CRC            uint32
}

// String is the reference as text; "" for none.
func (r Ref) String() string {
	if r.Object == "" {
		return ""
	}
	return fmt.Sprintf("%s:%d:%d:%08x", r.Object, r.Offset, r.Length, r.CRC)
}

// ParseRef reads a reference's text.
func ParseRef(text string) (r Ref, err error) {
	if text == "" {
		return r, nil
	}
	f := strings.Split(text, ":")
	bad := fmt.Errorf("invalid manifest reference %q", text)
	if len(f) != 4 || store.CheckName(f[0]) != nil {
		return r, bad
	}
	r.Object = f[0]
	var crc uint64
	var errs [3]error
	r.Offset, errs[0] = strconv.ParseInt(f[1], 10, 64)
	r.Length, errs[1] = strconv.ParseInt(f[2], 10, 64)
	crc, errs[2] = strconv.ParseUint(f[3], 16, 32)
	r.CRC = uint32(crc)
	if errors.Join(errs[:]...) != nil || r.Offset < 0 || r.Length <= 0 {
		return Ref{}, bad
	}
	return r, nil
}

// Manifest says which layers make a shard of a branch. It never changes: another one takes its place.
type Manifest struct {
	Format        int
	Branch        uint32
	Shard         placement.Shard
	Shards        uint32
	SegmentBlocks uint32
	Epoch         uint64 // of the shard, when it was written
	Hi            pg.LSN // the layers have all versions up to here
	Layers        []Layer
}

// Layer is one layer in the store: the stream that chunk exports, which can also be read at random.
type Layer struct {
	Object         string
	Offset, Length int64
	CRC            uint32
	Delta          bool `json:",omitempty"`
	Lo, Hi         pg.LSN
}

// Lo is the oldest LSN that the manifest's layers answer.
func (m *Manifest) Lo() pg.LSN {
	if len(m.Layers) == 0 {
		return 0
	}
	return m.Layers[0].Lo
}

// Bytes is what the layers take in the store.
func (m *Manifest) Bytes() (n int64) {
	for _, l := range m.Layers {
		n += l.Length
	}
	return n
}

// check tells whether the layers join.
func (m *Manifest) check() error {
	if m.Format < 1 || m.Format > manifestFormat {
		return fmt.Errorf("manifest of shard %d: format %d, this release knows up to %d", m.Shard, m.Format, manifestFormat)
	}
	for i, l := range m.Layers {
		switch {
		case i == 0 && l.Delta, i > 0 && !l.Delta:
			return fmt.Errorf("manifest of shard %d: layer %d is in the wrong place", m.Shard, i)
		case i > 0 && l.Lo != m.Layers[i-1].Hi:
			return fmt.Errorf("manifest of shard %d: a layer ends at %s, the next begins at %s", m.Shard, m.Layers[i-1].Hi, l.Lo)
		case l.Hi < l.Lo, l.Hi > m.Hi, store.CheckName(l.Object) != nil, l.Offset < 0, l.Length <= 0:
			return fmt.Errorf("manifest of shard %d: layer %d is malformed", m.Shard, i)
		}
	}
	return nil
}

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

// sealJSON is a value as JSON and a line with its checksum.
func sealJSON(v any) ([]byte, error) {
	b, err := json.Marshal(v)
	if err != nil {
		return nil, err
	}
	return fmt.Appendf(b, "\n%08x\n", crc32.Checksum(b, castagnoli)), nil
}

var errSealed = errors.New("its checksum is wrong")

func openJSON(b []byte, v any) error {
	body, sum, ok := bytes.Cut(b, []byte("\n"))
	if !ok || string(sum) != fmt.Sprintf("%08x\n", crc32.Checksum(body, castagnoli)) {
		return errSealed
	}
	return json.Unmarshal(body, v)
}
