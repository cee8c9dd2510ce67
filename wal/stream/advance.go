package stream

import (
	"context"
	"fmt"

	"everpage/wal/pg"
)

// AdvanceSlot moves a physical slot that nobody streams from, over an SQL connection of a role that may replicate, so that the server may remove the WAL
// before LSN to. It never moves a slot back, nor beyond what the server has flushed. ErrSlotMissing and ErrSlotLost say what is wrong with the slot.
func AdvanceSlot(ctx context.Context, c *Conn, name string, to pg.LSN) error {
	if err := checkSlotName(name); err != nil {
		return err
	}
	slots, err := Slots(ctx, c, name)
	if err != nil {
		return err
	}
	switch {
	case len(slots) == 0:
		return fmt.Errorf("%s: slot %s: %w", c.where, name, ErrSlotMissing)
	case !slots[0].Physical:
		return fmt.Errorf("%s: slot %s: %w", c.where, name, ErrSlotLogical)
	case slots[0].Lost() || slots[0].RestartLSN == 0:
		return fmt.Errorf("%s: slot %s: %w (it keeps no WAL)", c.where, name, ErrSlotLost)
	case slots[0].RestartLSN >= to:
		return nil
	}
	_, err = c.rows(ctx, fmt.Sprintf("SELECT pg_replication_slot_advance(%s, %s)", quoteLiteral(name), quoteLiteral(to.String())))
	if sqlState(err) == codeObjectInUse {
		return fmt.Errorf("%s: slot %s: %w: %w", c.where, name, ErrSlotActive, err)
	}
	if err != nil {
		return fmt.Errorf("%s: slot %s: %w", c.where, name, serverError(err))
	}
	return nil
}
