package ops_test

import (
	"testing"
	"testing/synctest"
	"time"

	"github.com/sluicebox/sluicebox/internal/cli"
	"github.com/sluicebox/sluicebox/internal/ops"
	"github.com/sluicebox/sluicebox/internal/replication"
)

// server is a Postgres that writes WAL.
type server struct{ end uint64 }

// write writes for some seconds, at a rate in bytes a second; the daemon looks at each of them. safe is what may still be written at the end.
func (s *server) write(m *ops.Metrics, n int, rate uint64, safe int64) {
	seconds(n, func(int) {
		s.look(m, safe)
		s.end += rate
	})
	s.look(m, safe)
}

func (s *server) look(m *ops.Metrics, safe int64) {
	m.Slot(replication.SlotState{Exists: true, WALStatus: "reserved", SafeWAL: &safe, WALEnd: s.end, Now: time.Now()}, time.Now(), time.Now())
}

func TestSecondsUntilTheSlotIsLost(t *testing.T) {
	t.Parallel()
	const lost = "sluicebox_slot_seconds_until_lost"
	for name, test := range map[string]func(t *testing.T, m *ops.Metrics, s *server){
		"it is what may still be written by the rate of writing": func(t *testing.T, m *ops.Metrics, s *server) {
			t.Helper()
			s.write(m, 600, 100, 360_000)
			want(t, m, lost, 3600)
		},
		"the rate is that of the last ten minutes": func(t *testing.T, m *ops.Metrics, s *server) {
			t.Helper()
			s.write(m, 3600, 1, 1000)
			s.write(m, 600, 50, 100_000)
			want(t, m, lost, 2000)
		},
		"of less than a minute no rate is told": func(t *testing.T, m *ops.Metrics, s *server) {
			t.Helper()
			s.write(m, 59, 100, 1000)
			wantNone(t, m, lost)
			s.write(m, 1, 100, 1000)
			want(t, m, lost, 10)
		},
		"nothing is written": func(t *testing.T, m *ops.Metrics, s *server) {
			t.Helper()
			s.write(m, 600, 0, 1000)
			wantNone(t, m, lost)
		},
		"what may be written is less than nothing": func(t *testing.T, m *ops.Metrics, s *server) {
			t.Helper()
			s.write(m, 600, 100, -5)
			want(t, m, lost, 0)
		},
		"without a limit it is never lost": func(t *testing.T, m *ops.Metrics, _ *server) {
			t.Helper()
			seconds(600, func(i int) { look(m, uint64(2000+i)) })
			wantNone(t, m, lost)
		},
		"another session may have another server": func(t *testing.T, m *ops.Metrics, s *server) {
			t.Helper()
			s.write(m, 600, 100, 1000)
			m.Leads(8)
			s.end = 5_000_000
			s.write(m, 59, 100, 1000)
			wantNone(t, m, lost)
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			synctest.Test(t, func(t *testing.T) {
				m := ops.NewMetrics(cli.Build{})
				m.Leads(7)
				test(t, m, &server{end: 1000})
			})
		})
	}
}

func TestDeduplicationWindowHeadroom(t *testing.T) {
	t.Parallel()
	const headroom = "sluicebox_clickhouse_deduplication_window_headroom_ratio"
	inserts := func(m *ops.Metrics, n int) {
		for range n {
			m.Attempt("ok", time.Millisecond)
		}
	}
	synctest.Test(t, func(t *testing.T) {
		m := streaming()
		wantNone(t, m, headroom)
		survey(t, m, found{parts: 1, window: 100})
		want(t, m, headroom, 1)
		inserts(m, 50)
		after(4 * time.Minute)
		inserts(m, 25)
		want(t, m, headroom, 0.25)
		after(deadline - 4*time.Minute + 5*time.Second) // the first ones have passed their deadline
		want(t, m, headroom, 0.75)
		inserts(m, 175)
		want(t, m, headroom, -1)
		after(time.Hour)
		want(t, m, headroom, 1)
		inserts(m, 100)
		want(t, m, headroom, 0)
	})
	synctest.Test(t, func(t *testing.T) {
		m := streaming()
		survey(t, m, found{parts: 1, window: 0})
		wantNone(t, m, headroom)
	})
}
