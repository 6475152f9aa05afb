package doctor

import (
	"context"
	"errors"
	"fmt"

	"github.com/jackc/pgx/v5"

	"github.com/sluicebox/sluicebox/internal/cli"
	"github.com/sluicebox/sluicebox/internal/ledger"
	"github.com/sluicebox/sluicebox/internal/pipeline"
	"github.com/sluicebox/sluicebox/internal/replication"
)

const slotExists = "slot.exists"

// slot is the replication slot, and what the ledger knows of it.
type slot struct {
	replication.SlotState

	phase    ledger.Phase
	active   bool
	twoPhase bool
	failover *bool // nil: the server has no such slots
}

func slotChecks() []check {
	on := []string{postgresReachable, slotExists}
	return []check{
		{slotExists, on[:1], findSlot, told},
		{"slot.owner", on, slotOwner, told},
		{"slot.usable", on, slotUsable, told},
		{"slot.active", on, slotActive, told},
		{"slot.safe_wal", on, safeWAL, anytime},
		{"slot.retained_wal", on, retainedWAL, anytime},
		{"slot.two_phase", on, twoPhase, anytime},
		{"slot.failover", on, failover, anytime},
	}
}

func findSlot(ctx context.Context, l *look) Finding {
	s, name := &l.slot, l.config.Replication.Slot
	var err error
	if s.SlotState, err = replication.Slot(ctx, l.pg, name); err != nil {
		return unknown(err)
	}
	s.phase = ledger.PhaseNew
	var known bool
	if err := l.pg.QueryRow(ctx, `SELECT to_regclass('sluicebox.stream') IS NOT NULL`).Scan(&known); err != nil {
		return unknown(err)
	}
	if known {
		err := l.pg.QueryRow(ctx, `SELECT phase FROM sluicebox.stream WHERE slot = $1`, name).Scan(&s.phase)
		if err != nil && !errors.Is(err, pgx.ErrNoRows) {
			return unknown(err)
		}
	}
	switch {
	case !s.Exists && s.phase == ledger.PhaseNew:
		return skip("not created yet; the first start of `cdc run` does so")
	case !s.Exists:
		return fail("slot "+name, "start `cdc run`: it creates the slot and reads from the table what came meanwhile", "the slot is missing; no event is lost")
	}
	err = l.pg.QueryRow(ctx, `SELECT active, coalesce((to_jsonb(s)->>'two_phase')::bool, false), (to_jsonb(s)->>'failover')::bool
FROM pg_replication_slots s WHERE slot_name = $1`, name).Scan(&s.active, &s.twoPhase, &s.failover)
	if err != nil {
		return unknown(err)
	}
	return ok("%s", name)
}

func slotOwner(ctx context.Context, l *look) Finding {
	var database string
	if err := l.pg.QueryRow(ctx, `SELECT current_database()`).Scan(&database); err != nil {
		return unknown(err)
	}
	if err := pipeline.Foreign(l.config.Replication.Slot, l.slot.SlotState, database, l.slot.phase); err != nil {
		return fail("a slot that sluicebox created in this database", pipeline.Hint(err), "%v", err)
	}
	return ok("ours")
}

func slotUsable(_ context.Context, l *look) Finding {
	s := l.slot
	switch {
	case s.Lost != "":
		return fail("a slot that can be read", "start `cdc run`: it creates the slot anew and reads from the table what is not delivered",
			"the slot is lost (%s); no event is lost", s.Lost)
	case s.WALStatus == "unreserved":
		return warn("reserved or extended", "start `cdc run`, or raise max_slot_wal_keep_size: ALTER SYSTEM SET max_slot_wal_keep_size = '100GB'; SELECT pg_reload_conf()",
			"WAL that the slot needs is removed at the next checkpoint")
	}
	return ok("wal_status %s", s.WALStatus)
}

func slotActive(_ context.Context, l *look) Finding {
	if !l.slot.active {
		return warn("a daemon that reads it", "start `cdc run`; if one runs, its log and /readyz say why it does not read", "nobody reads the slot, and WAL piles up")
	}
	return ok("read")
}

func safeWAL(_ context.Context, l *look) Finding {
	safe, keep := l.slot.SafeWAL, l.server.number("max_slot_wal_keep_size")<<20
	if safe == nil || keep <= 0 {
		return skip("no limit is set")
	}
	const share = 5 // a fifth
	if *safe < keep/share {
		return warn("a fifth of max_slot_wal_keep_size", fmt.Sprintf("ALTER SYSTEM SET max_slot_wal_keep_size = '%dMB'; SELECT pg_reload_conf()", 2*keep>>20),
			"the slot may be lost after %s more of WAL", cli.Size(*safe))
	}
	return ok("%s more may be written", cli.Size(*safe))
}

func retainedWAL(_ context.Context, l *look) Finding {
	const much = 16 << 30 // where no limit says what is
	most := int64(much)
	if limit := l.config.MaxSlotWAL; limit > 0 {
		most = limit / 2
	}
	if kept := l.slot.RetainedWAL; kept > most {
		return warn("less than "+cli.Size(most), "cdc status: it says what holds delivery up", "the slot keeps %s of WAL", cli.Size(kept))
	}
	return ok("%s", cli.Size(l.slot.RetainedWAL))
}

func twoPhase(_ context.Context, l *look) Finding {
	if l.slot.twoPhase {
		return fail("a slot without two_phase", dropSlot(l), "the slot streams prepared transactions before they are committed, which the daemon can't read")
	}
	return ok("off")
}

func failover(_ context.Context, l *look) Finding {
	if l.slot.failover == nil {
		return skip("PostgreSQL 17 is the first that has slots which standbys keep")
	}
	if !*l.slot.failover {
		return warn("a slot that standbys can keep", dropSlot(l), "failover is off for the slot: after a failover the daemon reads the table instead")
	}
	return ok("on")
}

// dropSlot is safe: rows outlive the WAL.
func dropSlot(l *look) string {
	return "stop the daemon, SELECT pg_drop_replication_slot(" + literal(l.config.Replication.Slot) +
		"), and start it again: it creates the slot anew and reads from the table what is not delivered"
}
