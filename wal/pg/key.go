package pg

import (
	"cmp"
	"fmt"
)

// ForkNumber is a fork of a relation.
type ForkNumber uint8

// PostgreSQL's forks, numbered as in WAL.
const (
	MainFork ForkNumber = 0
	FSMFork  ForkNumber = 1
	VMFork   ForkNumber = 2
	InitFork ForkNumber = 3
)

// Forks lists every fork in number order.
func Forks() []ForkNumber { return []ForkNumber{MainFork, FSMFork, VMFork, InitFork} }

// String is the fork's name as the command line and pg_relation_filepath's callers know it.
func (f ForkNumber) String() string {
	switch f {
	case MainFork:
		return "main"
	case FSMFork:
		return "fsm"
	case VMFork:
		return "vm"
	case InitFork:
		return "init"
	}
	return fmt.Sprintf("fork%d", uint8(f))
}

// ParseFork reads a fork's name.
func ParseFork(s string) (ForkNumber, error) {
	for _, f := range Forks() {
		if f.String() == s {
			return f, nil
		}
	}
	return 0, fmt.Errorf("unknown fork %q: want main, fsm, vm or init", s)
}

// RelFileLocator names a relation's storage: tablespace, database (0 for shared catalogs) and relation number.
// PostgreSQL 14 and 15 call it RelFileNode.
type RelFileLocator struct {
	Spc Oid `json:"spc"`
	DB  Oid `json:"db"`
	Rel Oid `json:"rel"`
}

// String is spc/db/rel, which ParseRel reads back.
func (r RelFileLocator) String() string { return fmt.Sprintf("%d/%d/%d", r.Spc, r.DB, r.Rel) }

// Compare orders by tablespace, database, relation number.
func (r RelFileLocator) Compare(o RelFileLocator) int {
	return cmp.Or(cmp.Compare(r.Spc, o.Spc), cmp.Compare(r.DB, o.DB), cmp.Compare(r.Rel, o.Rel))
}

// RelFork is one fork of a relation.
type RelFork struct {
	RelFileLocator
	Fork ForkNumber `json:"fork"`
}

// String is spc/db/rel, with the fork's name behind an underscore where it is not main.
func (r RelFork) String() string {
	if r.Fork == MainFork {
		return r.RelFileLocator.String()
	}
	return r.RelFileLocator.String() + "_" + r.Fork.String()
}

// PageKey names one page of a relation fork or of an SLRU, without branch and LSN.
//
// An SLRU page has Spc 0 (no tablespace has that OID), DB = its SLRU kind, Rel 0, Fork main, Block = the page number.
type PageKey struct {
	RelFork
	Block BlockNumber `json:"block"`
}

// String is the fork's name and block number, or an SLRU's directory and page number.
func (k PageKey) String() string {
	if s, ok := k.SLRU(); ok {
		return fmt.Sprintf("%s page %d", s, k.Block)
	}
	return fmt.Sprintf("%s block %d", k.RelFork, k.Block)
}

// Compare orders by relation, fork and block, as the store's keys do.
func (k PageKey) Compare(o PageKey) int {
	return cmp.Or(k.RelFileLocator.Compare(o.RelFileLocator), cmp.Compare(k.Fork, o.Fork), cmp.Compare(k.Block, o.Block))
}

// SLRU tells whether the key names an SLRU page, and of which SLRU.
func (k PageKey) SLRU() (SLRU, bool) {
	if k.Spc != 0 {
		return 0, false
	}
	return SLRU(k.DB), true
}

// SLRUPage makes the key of one SLRU page. Page numbers of every persistent SLRU fit 32 bits in all majors.
func SLRUPage(s SLRU, page uint32) PageKey {
	return PageKey{RelFork: RelFork{RelFileLocator: RelFileLocator{DB: Oid(s)}}, Block: page}
}
