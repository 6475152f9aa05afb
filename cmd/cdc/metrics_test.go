package main

import (
	"fmt"
	"regexp"
	"strconv"
	"testing"
)

// shows is what a sample of a daemon's metrics shows; ok: it does.
func (d *daemon) shows(t *testing.T, sample string) (value float64, ok bool) {
	t.Helper()
	_, text := d.get(t, "/metrics")
	match := regexp.MustCompile(`(?m)^` + regexp.QuoteMeta(sample) + ` (\S+)$`).FindStringSubmatch(text)
	if match == nil {
		return 0, false
	}
	value, err := strconv.ParseFloat(match[1], 64)
	if err != nil {
		t.Fatal(err)
	}
	return value, true
}

// showsSoon waits until samples have values.
func (d *daemon) showsSoon(t *testing.T, want map[string]float64) {
	t.Helper()
	eventually(t, func() string {
		for sample, value := range want {
			if got, ok := d.shows(t, sample); !ok || got != value {
				return fmt.Sprintf("%s is %v (shown: %t), want %v", sample, got, ok, value)
			}
		}
		return ""
	})
}

// grows waits until a sample is above a value, and then above what it was.
func (d *daemon) grows(t *testing.T, sample string, above float64) {
	t.Helper()
	for range 2 {
		eventually(t, func() string {
			got, ok := d.shows(t, sample)
			if !ok || got <= above {
				return fmt.Sprintf("%s is %v (shown: %t), want more than %v", sample, got, ok, above)
			}
			above = got
			return ""
		})
	}
}

func TestMetrics(t *testing.T) {
	t.Parallel()
	const lag, oldest = "sluicebox_lag_seconds", "sluicebox_oldest_unsettled_seconds"
	t.Run("what is delivered is told, with its delay, and what the slot is like; a standby leaves it to the leader", func(t *testing.T) {
		t.Parallel()
		l := newLine(t)
		d := l.start(t)
		d.wait(t, `"message":"streaming"`)
		l.write(t, 500, 50)
		l.allMarked(t)
		d.showsSoon(t, map[string]float64{
			lag: 0, oldest: 0, "sluicebox_lag_bytes": 0, "sluicebox_leading": 1, "sluicebox_epoch": 1,
			"sluicebox_events_received_total": 500, "sluicebox_events_skipped_total": 0, "sluicebox_events_delivered_total": 500,
			"go_gc_gomemlimit_bytes":                      18<<20 + 3*16<<20, // thrift
			"sluicebox_commit_to_queryable_seconds_count": 500, `sluicebox_commit_to_queryable_seconds_bucket{le="+Inf"}`: 500,
			`sluicebox_slot_wal_status{status="reserved"}`: 1, `sluicebox_slot_wal_status{status="lost"}`: 0,
			`sluicebox_retries_total{peer="postgres"}`: 0, `sluicebox_retries_total{peer="clickhouse"}`: 0,
		})
		for _, sample := range []string{
			"sluicebox_commit_to_queryable_seconds_sum", "sluicebox_batch_bytes_sum", "sluicebox_settle_seconds_sum", "sluicebox_slot_retained_wal_bytes",
		} {
			if got, _ := d.shows(t, sample); got <= 0 {
				t.Errorf("%s is %v, want more than 0", sample, got)
			}
		}
		second := l.start(t)
		second.showsSoon(t, map[string]float64{`sluicebox_state{state="standby"}`: 1, "sluicebox_leading": 0})
		for _, sample := range []string{lag, oldest, "sluicebox_slot_retained_wal_bytes"} {
			if got, ok := second.shows(t, sample); ok {
				t.Errorf("a standby shows %s %v", sample, got)
			}
		}
		d.kill(t)
		second.showsSoon(t, map[string]float64{lag: 0, "sluicebox_leading": 1, "sluicebox_epoch": 2})
	})
	t.Run("what is in quarantine is told, and what the last audits found", func(t *testing.T) {
		t.Parallel()
		l := newLine(t)
		d := l.start(t)
		l.write(t, 20, 20)
		l.allMarked(t)
		d.showsSoon(t, map[string]float64{"sluicebox_quarantine_rows": 0})
		if value, ok := d.shows(t, `sluicebox_audit_differences{kind="missing",scope="all"}`); ok {
			t.Errorf("%v events are missing, although there was no audit", value)
		}
		d.stop(t)
		l.execClickHouse(t, `DELETE FROM event_log WHERE id IN (3, 4)`)
		l.wantAudit(t, 6, "differs", "--since", "24h")
		l.wantAudit(t, 6, "differs")
		l.execClickHouse(t, `DELETE FROM event_log WHERE id = 5`)
		l.wantAudit(t, 6, "differs")
		l.exec(t, `INSERT INTO sluicebox.quarantine (slot, id, reason, lsn, ordinal, dropped_at)
			VALUES ($1, 1, 'planted', '0/0', 0, NULL), ($1, 2, 'planted', '0/0', 0, now())`, l.slot)
		d = l.start(t)
		d.showsSoon(t, map[string]float64{
			"sluicebox_quarantine_rows": 1, `sluicebox_audit_differences{kind="missing",scope="all"}`: 3,
			`sluicebox_audit_differences{kind="missing",scope="part"}`: 2, `sluicebox_audit_differences{kind="unknown",scope="all"}`: 0,
		})
		whole, _ := d.shows(t, `sluicebox_audit_last_timestamp_seconds{scope="all"}`)
		part, _ := d.shows(t, `sluicebox_audit_last_timestamp_seconds{scope="part"}`)
		if whole <= part || part <= 0 {
			t.Errorf("the last audits ended at %v and %v", whole, part)
		}
	})
	t.Run("the lag grows while ClickHouse is down and an event waits for it", func(t *testing.T) {
		t.Parallel()
		l, server := newOwnSinkLine(t)
		d := l.start(t)
		d.wait(t, `"message":"streaming"`)
		l.write(t, 10, 10)
		l.allMarked(t)
		d.showsSoon(t, map[string]float64{lag: 0})
		server.Kill()
		l.write(t, 100, 10)
		d.grows(t, lag, 5)
		d.grows(t, oldest, 5)
		d.grows(t, `sluicebox_retries_total{peer="clickhouse"}`, 0)
		d.showsSoon(t, map[string]float64{"sluicebox_clickhouse_up": 0})
		if err := server.Restart(t.Context()); err != nil {
			t.Fatal(err)
		}
		d.showsSoon(t, map[string]float64{lag: 0, oldest: 0, "sluicebox_commit_to_queryable_seconds_count": 110, "sluicebox_clickhouse_up": 1})
	})
	t.Run("the lag grows while Postgres is down, although nothing waits", func(t *testing.T) {
		t.Parallel()
		l, server := newOwnLine(t, map[string]string{"max_slot_wal_keep_size": "1GB"})
		d := l.start(t)
		d.wait(t, `"message":"streaming"`)
		l.write(t, 10, 10)
		l.allMarked(t)
		d.showsSoon(t, map[string]float64{lag: 0})
		if got, _ := d.shows(t, "sluicebox_slot_safe_wal_bytes"); got <= 0 {
			t.Errorf("%v bytes of WAL are safe to write, want more than 0", got)
		}
		server.Kill()
		d.grows(t, lag, 5)
		d.grows(t, `sluicebox_retries_total{peer="postgres"}`, 0)
		if err := server.Start(t.Context()); err != nil {
			t.Fatal(err)
		}
		d.showsSoon(t, map[string]float64{lag: 0, "sluicebox_leading": 1})
	})
}
