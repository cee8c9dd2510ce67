package redo

import (
	"encoding/binary"
	"fmt"

	"everpage/wal/pg"
)

// Flags of a GIN page (GinPageOpaqueData.flags).
const (
	ginData            = 1 << 0 // of a posting tree
	ginLeaf            = 1 << 1
	ginDeleted         = 1 << 2
	ginMeta            = 1 << 3
	ginList            = 1 << 4 // of the pending list
	ginListFullRow     = 1 << 5
	ginIncompleteSplit = 1 << 6
	ginCompressed      = 1 << 7
)

const (
	ginSpecial  = pg.BlockSize - 8 // where GinPageOpaqueData starts
	ginMetaSize = 56               // GinMetaPageData, with padding at the end

	// A page of a posting tree has its right bound, a TID, in the first 8 bytes behind the header, then its data.
	ginDataStart   = pg.PageHeaderSize + 8
	ginDataMax     = ginSpecial - ginDataStart // GinDataPageMaxDataSize
	ginPostingItem = 10                        // PostingItem: {block id of the child, TID}
)

// ginOpaque is GinPageOpaqueData: {uint32 right link, uint16 count of posting items or heap tuples, uint16 flags}.
type ginOpaque []byte

func (o ginOpaque) maxOff() uint16                { return binary.LittleEndian.Uint16(o[4:]) }
func (o ginOpaque) flags() uint16                 { return binary.LittleEndian.Uint16(o[6:]) }
func (o ginOpaque) setRightLink(b pg.BlockNumber) { binary.LittleEndian.PutUint32(o, b) }
func (o ginOpaque) setMaxOff(v uint16)            { binary.LittleEndian.PutUint16(o[4:], v) }
func (o ginOpaque) setFlags(v uint16)             { binary.LittleEndian.PutUint16(o[6:], v) }

// ginOpaqueOf is GinPageGetOpaque of a page that must be a GIN index's.
func ginOpaqueOf(p pg.Page) (ginOpaque, error) {
	if !p.Valid() || p.Special() != ginSpecial {
		return nil, fmt.Errorf("the page is no GIN page: lower %d, upper %d, special %d", p.Lower(), p.Upper(), p.Special())
	}
	return ginOpaque(p[ginSpecial:]), nil
}

// ginDataPageOf is ginOpaqueOf of a page that must be a posting tree's, a leaf or not.
func ginDataPageOf(p pg.Page, leaf bool) (ginOpaque, error) {
	o, err := ginOpaqueOf(p)
	if err != nil {
		return nil, err
	}
	if f := o.flags(); f&ginData == 0 || f&ginDeleted != 0 || f&ginLeaf != 0 != leaf {
		return nil, fmt.Errorf("the page is not of the posting tree's level: flags %04X, leaf wanted: %t", f, leaf)
	}
	return o, nil
}

// ginInit is GinInitPage.
func ginInit(p pg.Page, flags uint16) {
	p.Init(pg.BlockSize - ginSpecial)
	o := ginOpaque(p[ginSpecial:])
	o.setRightLink(pg.InvalidBlock)
	o.setFlags(flags)
}

// ginInitMeta is GinInitMetabuffer with metadata from a record.
func ginInitMeta(p pg.Page, meta []byte) {
	ginInit(p, ginMeta)
	p.SetLower(uint16(pg.PageHeaderSize + copy(p[pg.PageHeaderSize:], meta)))
}

// ginSetDataSize is GinDataPageSetDataSize: pd_lower tells where a posting tree page's data end.
func ginSetDataSize(p pg.Page, size int) { p.SetLower(uint16(ginDataStart + size)) }
