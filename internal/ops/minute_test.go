package ops_test

import (
	"context"
	"encoding/json"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/rs/zerolog"

	"github.com/sluicebox/sluicebox/internal/batch"
	"github.com/sluicebox/sluicebox/internal/cli"
	"github.com/sluicebox/sluicebox/internal/ops"
	"github.com/sluicebox/sluicebox/internal/replication"
)

func TestSummary(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		var out strings.Builder
		m := ops.NewMetrics(cli.Build{})
		beside(t, func(ctx context.Context) { m.Summarize(ctx, zerolog.New(&out)) })
		// minute passes while the slot is looked at, and everything is delivered up to where WAL ends, less some.
		end := uint64(1000)
		minute := func(less uint64) {
			seconds(60, func(int) {
				end++
				m.Slot(replication.SlotState{Exists: true, WALEnd: end, RetainedWAL: 4711}, time.Now(), time.Now())
				m.Progress(end-less, 0)
			})
			synctest.Wait()
		}
		wantLine := func(why string, want map[string]any) {
			t.Helper()
			var got map[string]any
			if out.Len() > 0 {
				if err := json.Unmarshal([]byte(out.String()), &got); err != nil {
					t.Fatalf("%s: %v in %q", why, err, out.String())
				}
			}
			if want != nil {
				want["level"], want["message"] = "info", "delivery since the last summary"
			}
			if diff := cmp.Diff(want, got); diff != "" {
				t.Errorf("%s: -want +got\n%s", why, diff)
			}
			out.Reset()
		}
		after(time.Minute)
		synctest.Wait()
		wantLine("nobody leads", nil)
		m.Leads(1)
		minute(0)
		wantLine("idle", nil)

		deliver := func(n int) {
			b := &batch.Batch{IDs: make([]int64, n), Rejected: make([]batch.Rejected, 1)}
			m.Settled(b, 0, 0)
		}
		deliver(300)
		deliver(315)
		minute(0)
		wantLine("events flow", map[string]any{
			"events": 615.0, "batches": 2.0, "events_per_second": 10.3, "quarantined": 2.0, "lag_seconds": 0.0, "retained_wal_bytes": 4711.0,
		})
		minute(0)
		wantLine("idle again", nil)
		minute(30)
		wantLine("nothing comes", map[string]any{
			"events": 0.0, "batches": 0.0, "events_per_second": 0.0, "quarantined": 0.0, "lag_seconds": 31.0, "retained_wal_bytes": 4711.0,
		})
		deliver(1)
		m.Leads(0)
		minute(0)
		if text := out.String(); strings.Contains(text, "delivery") {
			t.Errorf("somebody else leads: %s", text)
		}
	})
}
