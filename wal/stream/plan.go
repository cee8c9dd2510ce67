package stream

import (
	"context"
	"errors"
	"fmt"
	"net"
	"strconv"

	"everpage/wal/pg"
)

// PlanOptions name the node that is to follow a server.
type PlanOptions struct {
	Conninfo string
	Cluster  string
	Node     string
}

// NeedState tells how a need is met.
type NeedState string

// The states of a need.
const (
	Met     NeedState = "ok"
	Missing NeedState = "missing" // attach would fail
	Advised NeedState = "advised" // attach works, but see the reason
	Unknown NeedState = "unknown" // could not be seen with this role
)

// Need is one thing that following a server takes.
type Need struct {
	What  string    `json:"what"`
	State NeedState `json:"state"`
	Have  string    `json:"have,omitempty"`
	Want  string    `json:"want,omitempty"`
	Why   string    `json:"why,omitempty"`
	Fix   []string  `json:"fix,omitempty"` // SQL, or a line for pg_hba.conf
}

// Plan is what following a server takes, and what of it is there.
type Plan struct {
	Where         string       `json:"where"`
	Role          string       `json:"role"`
	Slot          string       `json:"slot"`
	Server        Server       `json:"server"`         // as far as could be seen
	DatabaseBytes int64        `json:"database_bytes"` // what the base backup will carry; -1 if unknown
	Databases     int          `json:"databases"`
	Tablespaces   []Tablespace `json:"tablespaces,omitempty"`
	Needs         []Need       `json:"needs"`
}

// Ready tells whether nothing is missing.
func (p Plan) Ready() bool {
	for _, n := range p.Needs {
		if n.State == Missing {
			return false
		}
	}
	return true
}

// Preflight finds out what following a server takes, without changing anything. It asks over a replication connection, and by SQL for
// the rest, with whatever of the two it gets; what it could not see is Unknown. An error means that neither connection was had.
func Preflight(ctx context.Context, o PlanOptions) (Plan, error) {
	slot, err := NodeSlot(o.Cluster, o.Node)
	if err != nil {
		return Plan{}, err
	}
	p := &Plan{Slot: slot, DatabaseBytes: -1}
	repl, replErr := Connect(ctx, o.Conninfo, Replication, o.Node)
	if errors.Is(replErr, ErrConninfo) {
		return Plan{}, replErr
	}
	if replErr == nil {
		defer repl.Close()
		p.Server, replErr = Identify(ctx, repl)
	}
	sql, sqlErr := Connect(ctx, o.Conninfo, SQL, o.Node)
	if sqlErr == nil {
		defer sql.Close()
	}
	if replErr != nil && sqlErr != nil {
		return Plan{}, errors.Join(replErr, sqlErr)
	}
	seen := repl
	if replErr != nil {
		seen = sql
		p.Server.Major, p.Server.Version = sql.major, sql.pgc.ParameterStatus("server_version")
		if err := p.Server.readBasics(ctx, sql); err != nil {
			return Plan{}, err
		}
		if err := p.Server.readSettings(ctx, sql); err != nil {
			return Plan{}, err
		}
	}
	p.Where, p.Role = seen.where, seen.user
	p.access(seen, replErr)
	p.source()
	if err := p.room(ctx, sql, sqlErr); err != nil {
		return Plan{}, err
	}
	p.retention()
	p.durability(o.Node)
	if err := p.size(ctx, sql); err != nil {
		return Plan{}, err
	}
	return *p, nil
}

func (p *Plan) add(n Need) { p.Needs = append(p.Needs, n) }

// access: the role's attribute and the pg_hba.conf line.
func (p *Plan) access(c *Conn, replErr error) {
	role := Need{What: "role with REPLICATION and LOGIN", State: Met, Have: p.Role}
	address := "<this node's address>/32"
	if a, ok := c.LocalAddr().(*net.TCPAddr); ok {
		bits := 32
		if a.IP.To4() == nil {
			bits = 128
		}
		address = fmt.Sprintf("%s/%d", a.IP, bits)
	}
	hba := Need{What: "pg_hba.conf line for replication", State: Met}
	line := fmt.Sprintf("host replication %s %s scram-sha-256", p.Role, address)
	switch {
	case replErr == nil:
	case errors.Is(replErr, ErrNoPrivilege):
		role.State, role.Why, role.Fix = Missing, replErr.Error(), []string{"ALTER ROLE " + quoteIdent(p.Role) + " REPLICATION;"}
	case errors.Is(replErr, ErrRole):
		role.State, role.Why, role.Fix = Missing, replErr.Error(), []string{"CREATE ROLE " + quoteIdent(p.Role) + " REPLICATION LOGIN PASSWORD '…';"}
	case errors.Is(replErr, ErrNoHBA), errors.Is(replErr, ErrPassword):
		role.State = Unknown
		hba.State, hba.Why, hba.Want, hba.Fix = Missing, replErr.Error(), line, []string{line, "SELECT pg_reload_conf();"}
	default:
		role.State, hba.State = Unknown, Unknown
		p.add(Need{What: "replication connection", State: Missing, Why: replErr.Error()})
	}
	p.add(role)
	p.add(hba)
}

// source: what the server must be.
func (p *Plan) source() {
	n := Need{What: "a primary", State: Met, Have: "PostgreSQL " + p.Server.Version}
	if p.Server.InRecovery {
		n.State, n.Why = Missing, "the server is a standby: name the primary, or all hosts with target_session_attrs=read-write"
	}
	p.add(n)
	n = Need{What: "wal_level", State: Met, Have: p.Server.WALLevel, Want: "replica or logical"}
	if p.Server.WALLevel == "minimal" {
		n.State, n.Why, n.Fix = Missing, "changes are left out of the WAL; takes a restart of the server", []string{"ALTER SYSTEM SET wal_level = replica;"}
	}
	p.add(n)
	n = Need{What: "full_page_writes", State: Met, Have: onOff(p.Server.FullPageWrites)}
	if !p.Server.FullPageWrites {
		n.State, n.Why = Advised, "base backups force full page images while they run, so import works; a crash of this server itself may tear pages"
	}
	p.add(n)
}

// room: free walsenders and slots. While it attaches, a node uses two walsenders.
func (p *Plan) room(ctx context.Context, sql *Conn, sqlErr error) error {
	senders := Need{What: "max_wal_senders", State: Unknown, Have: strconv.Itoa(p.Server.MaxWALSenders)}
	slots := Need{What: "max_replication_slots", State: Unknown, Have: strconv.Itoa(p.Server.MaxReplicationSlots)}
	if sqlErr != nil {
		senders.Why, slots.Why = "no SQL connection: "+sqlErr.Error(), "no SQL connection"
	} else {
		row, err := sql.row(ctx, `SELECT (SELECT count(*) FROM pg_stat_replication WHERE application_name IS DISTINCT FROM current_setting('application_name')),
			count(*), count(*) FILTER (WHERE slot_name = `+quoteLiteral(p.Slot)+`) FROM pg_replication_slots`, 3)
		if err != nil {
			return fmt.Errorf("%s: %w", sql.where, serverError(err))
		}
		var used [3]int
		for i := range used {
			if used[i], err = strconv.Atoi(string(row[i])); err != nil {
				return fmt.Errorf("%s: count of walsenders and slots: %w", sql.where, err)
			}
		}
		enough(&senders, p.Server.MaxWALSenders, used[0]+2, "ALTER SYSTEM SET max_wal_senders = ")
		enough(&slots, p.Server.MaxReplicationSlots, used[1]+1-used[2], "ALTER SYSTEM SET max_replication_slots = ")
	}
	p.add(senders)
	p.add(slots)
	return nil
}

func enough(n *Need, have, want int, fix string) {
	n.State, n.Want = Met, strconv.Itoa(want)
	if have < want {
		n.State, n.Why, n.Fix = Missing, "too few are free; takes a restart of the server", []string{fix + strconv.Itoa(max(want, 10)) + ";"}
	}
}

// retention: how much WAL the server keeps for a node that is away.
func (p *Plan) retention() {
	n := Need{What: "max_slot_wal_keep_size", State: Met, Have: sizeText(p.Server.MaxSlotWALKeepSize)}
	if p.Server.MaxSlotWALKeepSize < 0 {
		n.State, n.Why = Advised, "unbounded: while a node is away its slot keeps WAL until the server's disk is full; bound it to what pg_wal may take"
		n.Fix = []string{"ALTER SYSTEM SET max_slot_wal_keep_size = '64GB';", "SELECT pg_reload_conf();"}
	} else if p.Server.MaxSlotWALKeepSize < 1<<30 {
		n.State, n.Why = Advised, "a node that falls behind by more loses its slot, and its WAL has a hole unless another node or the store has it"
	}
	p.add(n)
	if t := p.Server.IdleSlotTimeout; t != "" && t != "0" {
		p.add(Need{What: "idle_replication_slot_timeout", State: Advised, Have: t, Want: "0", Why: "a node that is away for longer loses its slot"})
	}
}

// durability: whether commits wait for this node.
func (p *Plan) durability(node string) {
	n := Need{What: "synchronous_standby_names", State: Met, Have: p.Server.SynchronousNames}
	if p.Server.SynchronousNames == "" {
		n.State, n.Why = Advised, "commits do not wait for any node: what the last fraction of a second committed is lost with the primary's disk. To have them wait (and stop while the node is away):"
		n.Fix = []string{"ALTER SYSTEM SET synchronous_standby_names = " + quoteLiteral("ANY 1 ("+quoteIdent(node)+")") + ";", "SELECT pg_reload_conf();"}
	}
	p.add(n)
}

// size: what the base backup carries.
func (p *Plan) size(ctx context.Context, sql *Conn) error {
	n := Need{What: "disk for the base backup", State: Unknown, Why: "grant pg_read_all_stats to see it", Fix: []string{"GRANT pg_read_all_stats TO " + quoteIdent(p.Role) + ";"}}
	if sql != nil {
		row, err := sql.row(ctx, `SELECT count(*), bool_and(seen), sum(CASE WHEN seen THEN pg_database_size(oid) END)::bigint FROM (SELECT oid,
			has_database_privilege(oid, 'CONNECT') OR pg_has_role('pg_read_all_stats', 'USAGE') AS seen FROM pg_database) d`, 3)
		if err != nil {
			return fmt.Errorf("%s: database sizes: %w", sql.where, serverError(err))
		}
		if p.Databases, err = strconv.Atoi(string(row[0])); err != nil {
			return fmt.Errorf("%s: database sizes: %w", sql.where, err)
		}
		if string(row[1]) == "t" {
			if p.DatabaseBytes, err = strconv.ParseInt(string(row[2]), 10, 64); err != nil {
				return fmt.Errorf("%s: database sizes: %w", sql.where, err)
			}
			n = Need{What: n.What, State: Met, Want: sizeText(p.DatabaseBytes), Why: "beside the WAL of the retention window"}
		}
		rows, err := sql.rows(ctx, `SELECT oid, pg_tablespace_location(oid) FROM pg_tablespace WHERE spcname NOT IN ('pg_default', 'pg_global') ORDER BY oid`)
		if err != nil {
			return fmt.Errorf("%s: tablespaces: %w", sql.where, serverError(err))
		}
		for _, row := range rows {
			oid, err := strconv.ParseUint(string(row[0]), 10, 32)
			if err != nil {
				return fmt.Errorf("%s: tablespaces: %w", sql.where, err)
			}
			p.Tablespaces = append(p.Tablespaces, Tablespace{Oid: pg.Oid(oid), Location: string(row[1])})
		}
	}
	p.add(n)
	return nil
}

func onOff(b bool) string {
	if b {
		return "on"
	}
	return "off"
}

// sizeText prints bytes with a unit.
func sizeText(n int64) string {
	if n < 0 {
		return "-1"
	}
	units := []string{"B", "kB", "MB", "GB", "TB"}
	i := 0
	for ; n >= 10<<10 && i < len(units)-1; i++ {
		n >>= 10
	}
	return fmt.Sprintf("%d %s", n, units[i])
}
