package ops

import (
	"strings"
	"time"

	"github.com/dustin/go-humanize"

	"github.com/sluicebox/sluicebox/internal/cli"
	"github.com/sluicebox/sluicebox/internal/ledger"
)

// Level is how bad things are.
type Level string

// The levels.
const (
	Fine    Level = "fine"
	Notice  Level = "notice"  // somebody should look, in the daytime
	Trouble Level = "trouble" // nothing is delivered, or something may be lost
)

const (
	// silentAfter is the age of a lease from which on its holder is said to be silent. It is renewed at least once a second.
	silentAfter = 10 * time.Second
	// stuckAfter is the age of a planned batch from which on something is in its way. Writing and settling one takes seconds.
	stuckAfter = 30 * time.Second
)

// Summarize says in one sentence how things are by what Postgres knows.
func Summarize(s *ledger.Status) (level Level, summary string) {
	since := func(t time.Time) string { return cli.Span(s.ReadAt.Sub(t)) }
	slot, planned := s.ReplicationSlot, s.Planned.OldestAt
	switch {
	case s.InRecovery:
		return Trouble, "this server is a standby; who leads and what the slot keeps is known to the primary only"
	case !s.Known && len(s.Others) > 0:
		return Trouble, "no daemon has ever led " + s.Slot + "; the ledger knows " + strings.Join(s.Others, ", ") + " (CDC_SLOT)"
	case s.Leader.HeartbeatAt == nil:
		return Notice, "no daemon has ever led " + s.Slot + "; cdc run starts one"
	case !s.Leader.Leads:
		return Trouble, "no daemon leads since " + since(*s.Leader.HeartbeatAt) + Behind(s)
	case s.ReadAt.Sub(*s.Leader.HeartbeatAt) > silentAfter:
		return Trouble, "the daemon that leads is silent since " + since(*s.Leader.HeartbeatAt) + Behind(s)
	case planned != nil && s.ReadAt.Sub(*planned) > stuckAfter:
		return Trouble, "stuck: a batch that was planned " + since(*planned) + " ago is not delivered; is ClickHouse up? the daemon's log says why" +
			Behind(s)
	case s.Phase != ledger.PhaseStream:
		return Notice, backfilling(s)
	case slot == nil:
		return Trouble, "the slot is missing; the daemon creates it anew and reads the rows from the table"
	case slot.WALStatus == "lost" || slot.InvalidationReason != "":
		return Trouble, "the slot is lost (" + lostBecause(slot) + "); the daemon creates it anew and reads the rows from the table"
	case s.LagBytes != nil && *s.LagBytes < 0:
		return Trouble, "the WAL of the server ends " + cli.Size(-*s.LagBytes) +
			" before the settled position; was Postgres restored from a backup?"
	case !slot.Active:
		return Notice, "a daemon leads, but does not read the slot; its log says why" + Behind(s)
	case slot.WALStatus == "unreserved":
		return Trouble, "the slot is lost at the next checkpoint unless it catches up, for it keeps more than max_slot_wal_keep_size" + Behind(s)
	case len(s.Incidents) > 0 && s.Incidents[0].EndedAt == nil: // of a slot that is whole: ClickHouse has lost events
		return Notice, "streaming" + Behind(s) + lastBatch(s) + "; an incident is open (" + cli.OneLine(s.Incidents[0].Kind, 0) + ")"
	case s.Held > 0:
		return Notice, "streaming" + Behind(s) + lastBatch(s) + "; " + cli.Rows(s.Held) + " in quarantine"
	default:
		return Fine, "streaming" + Behind(s) + lastBatch(s)
	}
}

func backfilling(s *ledger.Status) string {
	text := "backfill"
	if len(s.Incidents) > 0 && s.Incidents[0].EndedAt == nil {
		text += " (" + cli.OneLine(s.Incidents[0].Kind, 0) + ") for " + cli.Span(s.ReadAt.Sub(s.Incidents[0].BeganAt))
	}
	if s.Unprocessed.Problem == "" {
		text += ": " + Unprocessed(s) + " to deliver"
	}
	return text + lastBatch(s)
}

// Behind says how much WAL is not delivered, to be put after other text; empty: that is not known.
func Behind(s *ledger.Status) string {
	if s.LagBytes == nil {
		return ""
	}
	return "; " + cli.Size(*s.LagBytes) + " behind"
}

func lastBatch(s *ledger.Status) string {
	if s.LastBatch == nil {
		return "; no batch yet"
	}
	return "; last batch " + cli.Span(s.ReadAt.Sub(s.LastBatch.SettledAt)) + " ago"
}

func lostBecause(slot *ledger.ReplicationSlot) string {
	if slot.InvalidationReason != "" {
		return slot.InvalidationReason
	}
	return "wal_status lost"
}

// Unprocessed says how many rows are left, as exactly as is known.
func Unprocessed(s *ledger.Status) string {
	u := s.Unprocessed
	switch {
	case u.Problem != "":
		return "not known: " + cli.OneLine(u.Problem, 0)
	case u.Whole:
		return cli.Rows(u.Rows)
	case u.Rows == u.Newest:
		return "at least " + cli.Rows(u.Rows)
	default:
		return cli.Rows(u.Rows) + " of the newest " + humanize.Comma(u.Newest)
	}
}
