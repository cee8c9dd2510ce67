package main

import (
	"encoding/binary"
	"fmt"
	"io"
	"strconv"

	"everpage/wal/pg"
)

// This file shows a page as the extension pageinspect does: header, line pointers, and for a heap page the tuple headers.

type pageView struct {
	Page     string     `json:"page"`
	At       pg.LSN     `json:"at"`
	LSN      pg.LSN     `json:"lsn"`
	Checksum uint16     `json:"checksum"`
	Flags    uint16     `json:"flags"`
	Lower    uint16     `json:"lower"`
	Upper    uint16     `json:"upper"`
	Special  uint16     `json:"special"`
	PageSize int        `json:"pagesize"`
	Version  int        `json:"version"`
	PruneXID uint32     `json:"prune_xid"`
	New      bool       `json:"new"`
	Items    []itemView `json:"items"`
}

type itemView struct {
	LP     int        `json:"lp"`
	Offset int        `json:"lp_off"`
	Flags  int        `json:"lp_flags"`
	Length int        `json:"lp_len"`
	Tuple  *tupleView `json:"tuple,omitempty"`
}

type tupleView struct {
	Xmin      uint32 `json:"t_xmin"`
	Xmax      uint32 `json:"t_xmax"`
	Field3    uint32 `json:"t_field3"`
	CTID      string `json:"t_ctid"`
	Infomask2 uint16 `json:"t_infomask2"`
	Infomask  uint16 `json:"t_infomask"`
	Hoff      uint8  `json:"t_hoff"`
}

// heapTupleHeaderSize is SizeofHeapTupleHeader.
const heapTupleHeaderSize = 23

func pageJSON(key pg.PageKey, at pg.LSN, p pg.Page) pageView {
	v := pageView{
		Page: key.String(), At: at, LSN: p.LSN(), Checksum: p.StoredChecksum(), Flags: p.Flags(), Lower: p.Lower(), Upper: p.Upper(), Special: p.Special(),
		PageSize: int(p.SizeVersion() &^ 0xFF), Version: int(p.SizeVersion() & 0xFF), PruneXID: p.PruneXID(), New: p.IsNew(), Items: []itemView{},
	}
	if v.New || !p.Valid() || key.Fork == pg.FSMFork || key.Fork == pg.VMFork {
		return v
	}
	heap := p.Special() == pg.BlockSize
	for i := range p.ItemCount() {
		id := p.Item(pg.OffsetNumber(i + 1))
		item := itemView{LP: i + 1, Offset: id.Offset(), Flags: id.Flags(), Length: id.Length()}
		if heap && id.Flags() == pg.LPNormal && id.Length() >= heapTupleHeaderSize && id.Offset()+id.Length() <= pg.BlockSize {
			t := p[id.Offset():]
			item.Tuple = &tupleView{
				Xmin: binary.LittleEndian.Uint32(t), Xmax: binary.LittleEndian.Uint32(t[4:]), Field3: binary.LittleEndian.Uint32(t[8:]),
				CTID: fmt.Sprintf("(%d,%d)", uint32(binary.LittleEndian.Uint16(t[12:]))<<16|uint32(binary.LittleEndian.Uint16(t[14:])),
					binary.LittleEndian.Uint16(t[16:])),
				Infomask2: binary.LittleEndian.Uint16(t[18:]), Infomask: binary.LittleEndian.Uint16(t[20:]), Hoff: t[22],
			}
		}
		v.Items = append(v.Items, item)
	}
	return v
}

var lpFlagNames = [...]string{"unused", "normal", "redirect", "dead"}

func pageText(w io.Writer, key pg.PageKey, at pg.LSN, p pg.Page) error {
	v := pageJSON(key, at, p)
	fmt.Fprintf(w, "%s at %s\n", v.Page, v.At)
	if v.New {
		_, err := fmt.Fprintln(w, "a new page: never written")
		return err
	}
	fmt.Fprintf(w, "lsn %s  checksum %d  flags 0x%04X  lower %d  upper %d  special %d  pagesize %d  version %d  prune_xid %d\n\n",
		v.LSN, v.Checksum, v.Flags, v.Lower, v.Upper, v.Special, v.PageSize, v.Version, v.PruneXID)
	rows := [][]string{{"LP", "OFF", "FLAGS", "LEN", "XMIN", "XMAX", "FIELD3", "CTID", "INFOMASK2", "INFOMASK", "HOFF"}}
	for _, i := range v.Items {
		row := []string{strconv.Itoa(i.LP), strconv.Itoa(i.Offset), lpFlagNames[i.Flags], strconv.Itoa(i.Length)}
		if t := i.Tuple; t != nil {
			row = append(row, strconv.FormatUint(uint64(t.Xmin), 10), strconv.FormatUint(uint64(t.Xmax), 10), strconv.FormatUint(uint64(t.Field3), 10), t.CTID,
				fmt.Sprintf("0x%04X", t.Infomask2), fmt.Sprintf("0x%04X", t.Infomask), strconv.Itoa(int(t.Hoff)))
		}
		rows = append(rows, row)
	}
	return columns(w, rows...)
}
