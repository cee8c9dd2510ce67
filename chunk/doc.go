// Package chunk is the version store: it keeps every version of every page, each fork's size, every SLRU page and the small objects of a branch
// (control state, relation maps, two-phase states, the commit index), all by LSN, in one Pebble database.
//
// A version is a pure function of the base import and the WAL. Writing it twice is harmless, also over a later state: whatever depends on earlier
// state is looked up as of the record's own LSN. So a crash loses nothing that the WAL can't give back: the store opens at the Resume position of
// the last table that it ingested, and the writer feeds it again from there.
//
// Writes go to a run in memory, which readers see, and leave it as one sorted table that also carries the branch's Progress. Nothing is visible
// to readers before Commit moves Progress.Readable over it, and nothing is answered outside [Progress.Consistent, Progress.Readable].
package chunk
