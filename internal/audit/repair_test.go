package audit_test

import (
	"context"
	"errors"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/sluicebox/sluicebox/internal/audit"
)

// deliverRequests does what a daemon does: it copies each row that is asked for back, until ctx is done.
func (p *pair) deliverRequests(ctx context.Context) error {
	for ctx.Err() == nil {
		var id int64
		err := p.pg.QueryRow(ctx, `SELECT id FROM sluicebox.redelivery WHERE slot = $1 LIMIT 1`, slot).Scan(&id)
		if errors.Is(err, pgx.ErrNoRows) || ctx.Err() != nil {
			continue
		}
		if err != nil {
			return err
		}
		if err := p.ch.Exec(ctx, `INSERT INTO event_log SELECT * FROM kept WHERE id = ? SETTINGS insert_deduplicate = 0`, id); err != nil {
			return err
		}
		if _, err := p.pg.Exec(ctx, `DELETE FROM sluicebox.redelivery WHERE slot = $1 AND id = $2`, slot, id); err != nil {
			return err
		}
	}
	return nil
}

func (p *pair) requests(t *testing.T) (ids []int64) {
	t.Helper()
	if err := p.pg.QueryRow(t.Context(), `SELECT coalesce(array_agg(id ORDER BY id), '{}') FROM sluicebox.redelivery WHERE slot = $1`, slot).Scan(&ids); err != nil {
		t.Fatal(err)
	}
	return ids
}

func TestRepair(t *testing.T) {
	t.Parallel()
	t.Run("what is missing is asked for, waited for and looked at again; the rest stays as it is", func(t *testing.T) {
		t.Parallel()
		p := delivered(t, 5000)
		p.exec(t, `UPDATE sluicebox.stream SET holder = 'test', heartbeat_at = now() WHERE slot = $1`, slot)
		p.execClickHouse(t, `CREATE TABLE kept AS event_log`)
		p.execClickHouse(t, `INSERT INTO kept SELECT * FROM event_log`)
		ctx, stop := context.WithCancel(t.Context())
		done := make(chan error, 1)
		go func() { done <- p.deliverRequests(ctx) }()
		t.Cleanup(func() {
			stop()
			if err := <-done; err != nil {
				t.Error(err)
			}
		})
		p.execClickHouse(t, `DELETE FROM event_log WHERE id IN (7, 8, 4500)`)
		p.execClickHouse(t, again(`id = 9`, `id AS id`))
		a := open(t, p.daemon, p.config())
		report, err := a.Run(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		if n := report.Differences[audit.Missing].Count; n != 3 {
			t.Fatalf("%d missing, want 3", n)
		}
		if err := a.Repair(t.Context(), time.Minute); err != nil {
			t.Fatal(err)
		}
		wantFound(t, report, map[audit.Kind][]string{audit.Duplicated: {"9@2026-03-01"}})
		if r := report.Repair; r.Requested != 3 || r.Restored != 3 || r.Stopped != "" {
			t.Errorf("repair: %+v", r)
		}
		wantFound(t, p.run(t), map[audit.Kind][]string{audit.Duplicated: {"9@2026-03-01"}})
	})
	t.Run("without a daemon the requests stay stored", func(t *testing.T) {
		t.Parallel()
		p := delivered(t, 1000)
		p.execClickHouse(t, `DELETE FROM event_log WHERE id IN (7, 8)`)
		p.exec(t, `DELETE FROM event_outbox WHERE id = 9`)
		p.exec(t, `INSERT INTO sluicebox.redelivery (slot, id) VALUES ($1, 8)`, slot)
		for _, lease := range []string{`holder = NULL`, `holder = 'gone', heartbeat_at = now() - interval '31 seconds'`} {
			p.exec(t, `UPDATE sluicebox.stream SET `+lease)
			a := open(t, p.daemon, p.config())
			report, err := a.Run(t.Context())
			if err != nil {
				t.Fatal(err)
			}
			if err := a.Repair(t.Context(), time.Hour); err != nil {
				t.Fatal(err)
			}
			wantFound(t, report, map[audit.Kind][]string{audit.Missing: {"7@2026-03-01", "8@2026-03-01"}, audit.Unknown: {"9@2026-03-01"}})
			if r := report.Repair; r.Requested != 2 || r.Restored != 0 || r.Stopped != audit.StoppedNoDaemon {
				t.Errorf("repair: %+v", r)
			}
			if ids := p.requests(t); len(ids) != 2 || ids[0] != 7 || ids[1] != 8 {
				t.Errorf("requests %v, want those of 7 and 8", ids)
			}
		}
	})
	t.Run("a daemon that does not get to it is waited for as long as allowed", func(t *testing.T) {
		t.Parallel()
		p := delivered(t, 1000)
		p.execClickHouse(t, `DELETE FROM event_log WHERE id = 7`)
		p.exec(t, `UPDATE sluicebox.stream SET holder = 'busy', heartbeat_at = now()`)
		a := open(t, p.daemon, p.config())
		report, err := a.Run(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		if err := a.Repair(t.Context(), time.Millisecond); err != nil {
			t.Fatal(err)
		}
		wantFound(t, report, map[audit.Kind][]string{audit.Missing: {"7@2026-03-01"}})
		if report.Repair.Stopped != audit.StoppedTimeout {
			t.Errorf("repair: %+v", report.Repair)
		}
	})
	t.Run("with nothing missing nothing is asked for", func(t *testing.T) {
		t.Parallel()
		p := delivered(t, 1000)
		a := open(t, p.daemon, p.config())
		report, err := a.Run(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		if err := a.Repair(t.Context(), time.Minute); err != nil {
			t.Fatal(err)
		}
		wantFound(t, report, none())
		if len(p.requests(t)) > 0 {
			t.Error("something was asked for")
		}
	})
}
