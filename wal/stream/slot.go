package stream

import (
	"context"
	"errors"
	"fmt"
	"hash/fnv"
	"strconv"
	"strings"

	"everpage/wal/pg"
)

// What can be wrong with a slot.
var (
	// ErrSlotMissing means that the slot does not exist, so the server may have removed WAL that is still needed.
	ErrSlotMissing = errors.New("replication slot does not exist")
	// ErrSlotLost means that the server gave the slot up, as max_slot_wal_keep_size has it.
	ErrSlotLost = errors.New("replication slot was invalidated by the server")
	// ErrSlotActive means that another connection uses the slot, possibly our own last one, until the server notices its end.
	ErrSlotActive = errors.New("replication slot is in use")
	// ErrSlotLogical means that a logical slot has the name.
	ErrSlotLogical = errors.New("replication slot is logical")
)

// maxSlotName is NAMEDATALEN - 1.
const maxSlotName = 63

// holdNode is the name that no node may have: its slot is the cluster's own.
const holdNode = "hold"

// NodeSlot names a node's slot, everpage_<cluster>_<node>: lower case, everything but letters and digits an underscore. A name that is too
// long is cut and ends with a hash of the whole.
func NodeSlot(cluster, node string) (string, error) {
	if cluster == "" || node == "" {
		return "", errors.New("a slot's name needs a cluster and a node")
	}
	if slotPart(node) == holdNode {
		return "", fmt.Errorf("no node can be called %q: that slot is the cluster's own; choose another name", node)
	}
	return slotName(cluster, node), nil
}

// HoldSlot names the slot with which a cluster holds WAL until its store has it.
func HoldSlot(cluster string) (string, error) {
	if cluster == "" {
		return "", errors.New("a slot's name needs a cluster")
	}
	return slotName(cluster, holdNode), nil
}

func slotName(cluster, node string) string {
	name := "everpage_" + slotPart(cluster) + "_" + slotPart(node)
	if len(name) <= maxSlotName {
		return name
	}
	h := fnv.New32a()
	h.Write([]byte(name)) // never fails
	return fmt.Sprintf("%s_%08x", name[:maxSlotName-9], h.Sum32())
}

// slotPart keeps what ReplicationSlotValidateName allows.
func slotPart(s string) string {
	return strings.Map(func(r rune) rune {
		switch {
		case r >= 'a' && r <= 'z', r >= '0' && r <= '9':
			return r
		case r >= 'A' && r <= 'Z':
			return r - 'A' + 'a'
		}
		return '_'
	}, s)
}

func checkSlotName(name string) error {
	if name == "" || len(name) > maxSlotName || slotPart(name) != name {
		return fmt.Errorf("slot name %q: want 1 to %d of a-z, 0-9 and _", name, maxSlotName)
	}
	return nil
}

// Slot is a physical slot as the replication protocol shows it.
type Slot struct {
	Name       string        `json:"name"`
	Created    bool          `json:"created"`               // by this call
	RestartLSN pg.LSN        `json:"restart_lsn,omitempty"` // WAL is kept from here on; 0 if unknown, as on 14
	Timeline   pg.TimelineID `json:"restart_timeline,omitempty"`
}

// EnsureSlot makes the physical slot if it does not exist, with WAL reserved from the last checkpoint on. An existing slot that reserves
// nothing, because the server gave it up or because it was made so, is made anew (15 and later show that).
func EnsureSlot(ctx context.Context, c *Conn, name string) (Slot, error) {
	if err := checkSlotName(name); err != nil {
		return Slot{}, err
	}
	if c.major >= 15 {
		s, err := ReadSlot(ctx, c, name)
		switch {
		case err == nil:
			return s, nil
		case errors.Is(err, ErrSlotLost):
			if err := DropSlot(ctx, c, name); err != nil {
				return Slot{}, err
			}
		case !errors.Is(err, ErrSlotMissing):
			return Slot{}, err
		}
	}
	_, err := c.rows(ctx, "CREATE_REPLICATION_SLOT "+name+" PHYSICAL RESERVE_WAL")
	switch {
	case sqlState(err) == codeDuplicateObject && c.major < 15:
		return Slot{Name: name}, nil
	case sqlState(err) == "53400":
		return Slot{}, fmt.Errorf("%s: slot %s: %w; raise max_replication_slots and restart the server, or drop unused slots", c.where, name, serverError(err))
	case err != nil:
		return Slot{}, fmt.Errorf("%s: slot %s: %w", c.where, name, serverError(err))
	}
	s := Slot{Name: name}
	if c.major >= 15 {
		if s, err = ReadSlot(ctx, c, name); err != nil {
			return Slot{}, err
		}
	}
	s.Created = true
	return s, nil
}

// ReadSlot reads a physical slot over a replication connection, from a server of 15 or later. ErrSlotMissing, ErrSlotLost and ErrSlotLogical
// say what is wrong with it.
func ReadSlot(ctx context.Context, c *Conn, name string) (Slot, error) {
	if err := checkSlotName(name); err != nil {
		return Slot{}, err
	}
	row, err := c.row(ctx, "READ_REPLICATION_SLOT "+name, 3)
	if sqlState(err) == codeFeatureNotSupported {
		return Slot{}, fmt.Errorf("%s: slot %s: %w; drop it or give the node another name", c.where, name, ErrSlotLogical)
	}
	if err != nil {
		return Slot{}, fmt.Errorf("%s: slot %s: %w", c.where, name, err)
	}
	if row[0] == nil {
		return Slot{}, fmt.Errorf("%s: slot %s: %w", c.where, name, ErrSlotMissing)
	}
	if row[1] == nil || row[2] == nil {
		return Slot{}, fmt.Errorf("%s: slot %s: %w (it keeps no WAL)", c.where, name, ErrSlotLost)
	}
	s := Slot{Name: name}
	if s.RestartLSN, err = pg.ParseLSN(string(row[1])); err != nil {
		return Slot{}, fmt.Errorf("%s: slot %s: %w", c.where, name, err)
	}
	tli, err := strconv.ParseUint(string(row[2]), 10, 32)
	if err != nil {
		return Slot{}, fmt.Errorf("%s: slot %s: timeline %q", c.where, name, row[2])
	}
	s.Timeline = pg.TimelineID(tli)
	return s, nil
}

// DropSlot drops a slot over a replication connection. A slot that does not exist is no error.
func DropSlot(ctx context.Context, c *Conn, name string) error {
	if err := checkSlotName(name); err != nil {
		return err
	}
	_, err := c.rows(ctx, "DROP_REPLICATION_SLOT "+name)
	switch sqlState(err) {
	case codeUndefinedObject:
		return nil
	case codeObjectInUse:
		return fmt.Errorf("%s: slot %s: %w: %w", c.where, name, ErrSlotActive, err)
	}
	if err != nil {
		return fmt.Errorf("%s: slot %s: %w", c.where, name, serverError(err))
	}
	return nil
}

// CreateSlotSQL is the SQL that makes a slot by hand as EnsureSlot does.
func CreateSlotSQL(name string) string {
	return "SELECT pg_create_physical_replication_slot(" + quoteLiteral(name) + ", true);"
}

// DropSlotSQL is the SQL that drops slots by hand, those that exist.
func DropSlotSQL(names ...string) string {
	quoted := make([]string, len(names))
	for i, n := range names {
		quoted[i] = quoteLiteral(n)
	}
	return "SELECT pg_drop_replication_slot(slot_name) FROM pg_replication_slots WHERE slot_name IN (" + strings.Join(quoted, ", ") + ");"
}

// SlotStatus is a slot as pg_replication_slots shows it.
type SlotStatus struct {
	Name        string `json:"name"`
	Physical    bool   `json:"physical"`
	Active      bool   `json:"active"`
	ActivePID   int    `json:"active_pid,omitempty"`
	RestartLSN  pg.LSN `json:"restart_lsn"`            // 0: it keeps no WAL
	WALStatus   string `json:"wal_status"`             // reserved, extended, unreserved, lost; empty if it keeps no WAL
	SafeWALSize int64  `json:"safe_wal_size"`          // bytes that may be written before WAL is lost; -1 unbounded
	Retained    int64  `json:"retained"`               // bytes from RestartLSN to the end of the WAL
	Invalidated string `json:"invalidation,omitempty"` // 17 and later: why it was invalidated
}

// Lost tells whether the server gave the slot up.
func (s SlotStatus) Lost() bool { return s.WALStatus == "lost" || s.Invalidated != "" }

// Slots reads slots over an SQL connection; any role may. Slots that don't exist are left out.
func Slots(ctx context.Context, c *Conn, names ...string) ([]SlotStatus, error) {
	quoted := make([]string, len(names))
	for i, n := range names {
		quoted[i] = quoteLiteral(n)
	}
	if len(names) == 0 {
		return nil, nil
	}
	reason := "NULL"
	if c.major >= 17 {
		reason = "invalidation_reason"
	}
	rows, err := c.rows(ctx, `SELECT slot_name, slot_type = 'physical', active, active_pid, restart_lsn, wal_status, safe_wal_size, `+reason+`,
		pg_wal_lsn_diff(CASE WHEN pg_is_in_recovery() THEN pg_last_wal_receive_lsn() ELSE pg_current_wal_lsn() END, restart_lsn)
		FROM pg_replication_slots WHERE slot_name IN (`+strings.Join(quoted, ", ")+`) ORDER BY slot_name COLLATE "C"`)
	if err != nil {
		return nil, fmt.Errorf("%s: replication slots: %w", c.where, serverError(err))
	}
	var out []SlotStatus
	for _, row := range rows {
		s := SlotStatus{Name: string(row[0]), Physical: string(row[1]) == "t", Active: string(row[2]) == "t", WALStatus: string(row[5]), SafeWALSize: -1, Invalidated: string(row[7])}
		var errs []error
		number := func(b []byte, into *int64) {
			if b != nil {
				n, err := strconv.ParseInt(string(b), 10, 64)
				*into, errs = n, append(errs, err)
			}
		}
		var pid int64
		number(row[3], &pid)
		number(row[6], &s.SafeWALSize)
		number(row[8], &s.Retained)
		s.ActivePID = int(pid)
		if row[4] != nil {
			s.RestartLSN, err = pg.ParseLSN(string(row[4]))
			errs = append(errs, err)
		}
		if err := errors.Join(errs...); err != nil {
			return nil, fmt.Errorf("%s: replication slot %s: %w", c.where, s.Name, err)
		}
		out = append(out, s)
	}
	return out, nil
}
