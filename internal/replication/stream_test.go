package replication

import (
	"testing"
	"time"

	"github.com/sluicebox/sluicebox/internal/testdb"
)

func TestMain(m *testing.M) { testdb.Main(m) }

// TestClose holds that what was acknowledged last reaches the server on the way out.
func TestClose(t *testing.T) {
	t.Parallel()
	db := testdb.Migrated(t)
	config := Config{URL: db.Replication, Slot: db.Slot(t), Publication: "sluicebox", Schema: "public", Table: "event_outbox"}
	pool := db.Postgres(t)
	if _, err := EnsurePublication(t.Context(), pool, config); err != nil {
		t.Fatal(err)
	}
	created, err := CreateSlot(t.Context(), config)
	if err != nil {
		t.Fatal(err)
	}
	created.Close(t.Context())
	stream, err := Start(t.Context(), config, created.Start, created.Start)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(stream.Close)
	before, err := Slot(t.Context(), pool, config.Slot)
	if err != nil {
		t.Fatal(err)
	}
	_, err = pool.Exec(t.Context(), `INSERT INTO event_outbox (event_type, environment, event_context) SELECT 't', 'test', '{}' FROM generate_series(1, 10)`)
	if err != nil {
		t.Fatal(err)
	}

	rows, end, committed := 0, uint64(0), int64(0)
	for end == 0 {
		for _, event := range <-stream.Events() {
			switch event.Kind {
			case Insert:
				rows++
				committed = event.Committed
			case Commit:
				if rows > 0 {
					end = event.LSN
				}
			case Idle:
			}
		}
	}
	if rows != 10 {
		t.Errorf("%d rows before their commit, want 10", rows)
	}
	after, err := Slot(t.Context(), pool, config.Slot)
	if err != nil {
		t.Fatal(err)
	}
	if committed < before.Now.UnixMicro() || committed > after.Now.UnixMicro() {
		t.Errorf("committed at %d, want a time of the server's between %d and %d", committed, before.Now.UnixMicro(), after.Now.UnixMicro())
	}
	if end <= before.WALEnd || end > after.WALEnd || after.WALStatus != "reserved" {
		t.Errorf("the commit ends at %d, the WAL at %d before and %d after it; the slot is %s", end, before.WALEnd, after.WALEnd, after.WALStatus)
	}
	stream.Ack(end)
	stream.Close()
	tick := time.NewTicker(10 * time.Millisecond) // the server needs a moment to read it
	defer tick.Stop()
	limit := time.After(time.Minute)
	for {
		slot, err := Slot(t.Context(), pool, config.Slot)
		if err != nil {
			t.Fatal(err)
		}
		if slot.ConfirmedFlush == end {
			return
		}
		select {
		case <-tick.C:
		case <-limit:
			t.Fatalf("the slot is confirmed up to %d, want %d", slot.ConfirmedFlush, end)
		}
	}
}

// TestPublicationByMany holds that several programs can create the publication at once.
func TestPublicationByMany(t *testing.T) {
	t.Parallel()
	db := testdb.Migrated(t)
	pool := db.Postgres(t)
	if _, err := pool.Exec(t.Context(), `DROP PUBLICATION sluicebox`); err != nil {
		t.Fatal(err)
	}
	config := Config{URL: db.PostgresURL, Publication: "sluicebox", Schema: "public", Table: "event_outbox"}
	// One has created it and not committed: each of the others waits for its outcome, and then finds the name taken.
	tx, err := pool.Begin(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if _, err := EnsurePublication(t.Context(), tx, config); err != nil {
		t.Fatal(err)
	}
	done := make(chan error)
	go func() {
		_, err := EnsurePublication(t.Context(), pool, config)
		done <- err
	}()
	waiting := false
	for !waiting && t.Context().Err() == nil {
		if err := pool.QueryRow(t.Context(), `SELECT EXISTS (SELECT FROM pg_locks WHERE locktype = 'transactionid' AND NOT granted)`).Scan(&waiting); err != nil {
			t.Fatal(err)
		}
	}
	if err := tx.Commit(t.Context()); err != nil {
		t.Fatal(err)
	}
	if err := <-done; err != nil {
		t.Error(err)
	}
}
