package stream

import (
	"bufio"
	"bytes"
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"hash/maphash"
	"io"
)

// manifestSums holds size and CRC-32C of each received file until the manifest comes, 24 bytes a file: names are kept as hashes.
type manifestSums map[uint64]fileSum

type fileSum struct {
	size int64
	crc  uint32
}

var manifestSeed = maphash.MakeSeed()

func (m manifestSums) add(name string, size int64, crc uint32) {
	m[maphash.String(manifestSeed, name)] = fileSum{size, crc}
}

// manifestEntry is one file in a manifest.
type manifestEntry struct {
	Path        *string `json:"Path"`
	EncodedPath *string `json:"Encoded-Path"`
	Size        int64   `json:"Size"`
	Algorithm   string  `json:"Checksum-Algorithm"`
	Checksum    string  `json:"Checksum"`
}

// verify reads a backup_manifest and holds all files against it. A manifest has one file a line, so it is read by lines: it may be larger
// than memory. Its last line bears the SHA-256 of all lines before.
func (m manifestSums) verify(r io.Reader) error {
	in := bufio.NewReaderSize(r, 64<<10)
	sum := sha256.New()
	files := 0
	for {
		line, err := in.ReadBytes('\n')
		if err != nil {
			return fmt.Errorf("manifest: cut off: %w", err)
		}
		if rest, ok := bytes.CutPrefix(line, []byte(`"Manifest-Checksum": "`)); ok {
			want, _, _ := bytes.Cut(rest, []byte(`"`))
			if got := hex.EncodeToString(sum.Sum(nil)); got != string(want) {
				return fmt.Errorf("manifest: checksum %s, it says %s", got, want)
			}
			break
		}
		sum.Write(line)
		if !bytes.HasPrefix(line, []byte(`{ "Path"`)) && !bytes.HasPrefix(line, []byte(`{ "Encoded-Path"`)) {
			continue
		}
		if err := m.check(bytes.TrimRight(line, ",\n")); err != nil {
			return fmt.Errorf("manifest: %w", err)
		}
		files++
	}
	if files != len(m) {
		return fmt.Errorf("manifest: it lists %d files, %d were received", files, len(m))
	}
	if _, err := io.Copy(io.Discard, in); err != nil {
		return fmt.Errorf("manifest: %w", err)
	}
	return nil
}

func (m manifestSums) check(line []byte) error {
	var e manifestEntry
	if err := json.Unmarshal(line, &e); err != nil {
		return fmt.Errorf("line %q: %w", line, err)
	}
	var name string
	switch {
	case e.Path != nil:
		name = *e.Path
	case e.EncodedPath != nil:
		b, err := hex.DecodeString(*e.EncodedPath)
		if err != nil {
			return fmt.Errorf("line %q: %w", line, err)
		}
		name = string(b)
	default:
		return errors.New("a file without a path")
	}
	crc, err := hex.DecodeString(e.Checksum)
	if err != nil || len(crc) != 4 || e.Algorithm != "CRC32C" {
		return fmt.Errorf("file %s: checksum %q of algorithm %q, want CRC32C", name, e.Checksum, e.Algorithm)
	}
	got, ok := m[maphash.String(manifestSeed, name)]
	if !ok {
		return fmt.Errorf("file %s was not received", name)
	}
	if got.size != e.Size || got.crc != binary.LittleEndian.Uint32(crc) {
		return fmt.Errorf("file %s was damaged on its way: %d bytes with CRC-32C %08x received, %d with %08x sent", name, got.size, got.crc, e.Size, binary.LittleEndian.Uint32(crc))
	}
	return nil
}
