package main

import (
	"slices"
	"strings"

	"everpage/redo"
	"everpage/wal"
	"everpage/wal/pg"
)

// recordTypes are the names of a resource manager's record types that a major has, in the order of their codes.
func recordTypes(major pg.Major, rmgr wal.Rmgr) []string {
	var names []string
	for code := range 16 {
		name := redo.RecordName(major, rmgr, uint8(code<<4))
		if strings.HasPrefix(name, "UNKNOWN") || slices.Contains(names, name) {
			continue
		}
		names = append(names, name)
	}
	return names
}

// allTypes are the names of any major's record types, in the order of the first major that has each.
func allTypes(rmgr wal.Rmgr) []string {
	var names []string
	for _, major := range pg.Majors() {
		for _, name := range recordTypes(major, rmgr) {
			if !slices.Contains(names, name) {
				names = append(names, name)
			}
		}
	}
	return names
}

// oracle is what a type's redo is held against.
type oracle string

const (
	image  oracle = "after-images"                   // of each page, behind each record
	files  oracle = "files"                          // its pages are images themselves: the stopped server's files
	state  oracle = "SLRUs, sizes, objects, control" // the stopped server's
	nobody oracle = "changes nothing"                // which the stopped server's files show as well
)

// oracles of the types that bear no after-images, by resource manager; "" stands for the manager's other types.
var oracles = map[wal.Rmgr]map[string]oracle{
	wal.RmXLOG: {
		"FPI": files, "FPI_FOR_HINT": files, "CHECKPOINT_SHUTDOWN": state, "CHECKPOINT_ONLINE": state, "NEXTOID": state, "PARAMETER_CHANGE": state,
		"END_OF_RECOVERY": state, "": nobody,
	},
	wal.RmTransaction:       {"ASSIGNMENT": nobody, "INVALIDATION": nobody, "": state},
	wal.RmStorage:           {"": state},
	wal.RmCLOG:              {"": state},
	wal.RmDatabase:          {"": state},
	wal.RmTablespace:        {"": state},
	wal.RmMultiXact:         {"": state},
	wal.RmRelMap:            {"": state},
	wal.RmStandby:           {"": nobody},
	wal.RmCommitTs:          {"": state},
	wal.RmReplicationOrigin: {"": state},
	wal.RmLogicalMessage:    {"": nobody},
	wal.RmHeap2:             {"REWRITE": nobody, "NEW_CID": nobody},
	wal.RmHeap:              {"TRUNCATE": nobody},
	wal.RmBtree:             {"REUSE_PAGE": nobody},
	wal.RmGist:              {"PAGE_REUSE": nobody, "ASSIGN_LSN": nobody},
}

func oracleOf(rmgr wal.Rmgr, name string) oracle {
	types := oracles[rmgr]
	if o, ok := types[name]; ok {
		return o
	}
	if o, ok := types[""]; ok {
		return o
	}
	return image
}

// unreachable says why no followed server writes a type. Each has a unit test all the same, which is named.
var unreachable = map[string]string{
	"XLOG/NOOP":            "nothing in PostgreSQL writes it (TestUnreachableRecordsChangeNothing)",
	"Gist/ASSIGN_LSN":      "written at wal_level = minimal only, with which no server can be followed (TestUnreachableRecordsChangeNothing)",
	"Heap/HOT_UPDATE+INIT": "a page is initialised by a tuple that is alone on it, and the old version is on the same page (TestUnreachableHotUpdateOfNewPage)",
}
