package ops_test

import (
	"testing"
	"time"

	"github.com/sluicebox/sluicebox/internal/ledger"
	"github.com/sluicebox/sluicebox/internal/ops"
)

func TestSummarize(t *testing.T) {
	t.Parallel()
	now := time.Date(2026, 11, 25, 3, 0, 0, 0, time.UTC)
	ago := func(d time.Duration) *time.Time { at := now.Add(-d); return &at }
	bytes := func(n int64) *int64 { return &n }
	healthy := func() *ledger.Status {
		return &ledger.Status{
			ReadAt: now, Slot: "s", Known: true, Phase: ledger.PhaseStream, LagBytes: bytes(1_200_000),
			Leader:          ledger.Leader{Leads: true, Holder: "h", HeartbeatAt: ago(time.Second)},
			ReplicationSlot: &ledger.ReplicationSlot{Active: true, WALStatus: "reserved"},
			LastBatch:       &ledger.SettledBatch{SettledAt: *ago(400 * time.Millisecond)},
		}
	}
	for want, change := range map[string]func(*ledger.Status){
		"streaming; 1.2 MB behind; last batch 0.4 s ago":                       func(*ledger.Status) {},
		"streaming; 1.2 MB behind; last batch 0.4 s ago; 2 rows in quarantine": func(s *ledger.Status) { s.Held = 2 },
		"streaming; 1.2 MB behind; no batch yet":                               func(s *ledger.Status) { s.LastBatch = nil },
		"no daemon leads since 3 min; 1.2 MB behind": func(s *ledger.Status) {
			s.Leader = ledger.Leader{HeartbeatAt: ago(3 * time.Minute)}
		},
		"the daemon that leads is silent since 45 s; 1.2 MB behind": func(s *ledger.Status) { s.Leader.HeartbeatAt = ago(45 * time.Second) },
		"stuck: a batch that was planned 3 min ago is not delivered; is ClickHouse up? the daemon's log says why; 1.2 MB behind": func(s *ledger.Status) {
			s.Planned.OldestAt = ago(3 * time.Minute)
		},
		"a daemon leads, but does not read the slot; its log says why; 1.2 MB behind": func(s *ledger.Status) { s.ReplicationSlot.Active = false },
		"the slot is lost (wal_removed); the daemon creates it anew and reads the rows from the table": func(s *ledger.Status) {
			s.ReplicationSlot.InvalidationReason = "wal_removed"
		},
		"the slot is lost (wal_status lost); the daemon creates it anew and reads the rows from the table": func(s *ledger.Status) {
			s.ReplicationSlot.WALStatus = "lost"
		},
		"the slot is lost at the next checkpoint unless it catches up, for it keeps more than max_slot_wal_keep_size; 1.2 MB behind": func(s *ledger.Status) {
			s.ReplicationSlot.WALStatus = "unreserved"
		},
		"streaming; 1.2 MB behind; last batch 0.4 s ago; an incident is open (clickhouse)": func(s *ledger.Status) {
			s.Incidents = []ledger.Incident{{Kind: "clickhouse"}}
		},
		"the WAL of the server ends 5.0 kB before the settled position; was Postgres restored from a backup?": func(s *ledger.Status) { s.LagBytes = bytes(-5000) },
		"this server is a standby; who leads and what the slot keeps is known to the primary only":            func(s *ledger.Status) { s.InRecovery = true },
		"backfill: 9 rows of the newest 100,000 to deliver; last batch 0.4 s ago": func(s *ledger.Status) {
			s.Phase, s.LagBytes, s.Unprocessed = ledger.PhaseBackfill, nil, ledger.Unprocessed{Rows: 9, Newest: 100_000}
		},
	} {
		s := healthy()
		change(s)
		if _, got := ops.Summarize(s); got != want {
			t.Errorf("got  %s\nwant %s", got, want)
		}
	}
}
