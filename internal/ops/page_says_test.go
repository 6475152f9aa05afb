package ops_test

import (
	"errors"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/sluicebox/sluicebox/internal/doctor"
	"github.com/sluicebox/sluicebox/internal/ops"
	"github.com/sluicebox/sluicebox/internal/pipeline"
)

func TestPageSays(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct {
		happens func(t *testing.T, m *ops.Metrics, b *books)
		want    []string
	}{
		"that it starts": {
			func(_ *testing.T, m *ops.Metrics, _ *books) { m.State(pipeline.Starting, "") },
			[]string{"<title>Check", "Starting: connecting to Postgres"},
		},
		"that ClickHouse holds delivery up, and why": {
			func(_ *testing.T, m *ops.Metrics, _ *books) {
				m.InHand(100, 200, 0)
				m.Retry(pipeline.ClickHouse)
				m.State(pipeline.Paused, "write batch 17: connection refused")
				after(45 * time.Second)
			},
			[]string{
				"<title>Trouble", "ClickHouse holds delivery up for 45 s; 300 rows in hand, the rest in Postgres", "write batch 17: connection refused",
				`<g class="link held"><line x1="607"`, `<g class="box bad"><rect x="726"`,
			},
		},
		"that a pause of some seconds is no trouble yet": {
			func(_ *testing.T, m *ops.Metrics, _ *books) {
				m.Retry(pipeline.ClickHouse)
				m.State(pipeline.Paused, "connection refused")
				after(3 * time.Second)
			},
			[]string{"<title>Check", "ClickHouse holds delivery up for 3.0 s"},
		},
		"for how long Postgres has been away, however often it was tried": {
			func(_ *testing.T, m *ops.Metrics, b *books) {
				b.err = errors.New("connection refused")
				for range 6 {
					m.Retry(pipeline.Postgres)
					m.State(pipeline.Paused, "connect: refused")
					after(5 * time.Second)
					m.State(pipeline.Starting, "")
					after(5 * time.Second)
				}
			},
			[]string{"<title>Trouble", "Postgres holds delivery up for 60 s", "connect: refused", "Postgres does not answer this page", `<g class="box bad"><rect x="2"`},
		},
		"that it goes on after a pause": {
			func(_ *testing.T, m *ops.Metrics, _ *books) {
				m.Retry(pipeline.ClickHouse)
				m.State(pipeline.Paused, "connection refused")
				after(time.Minute)
				m.State(pipeline.Streaming, "")
				look(m, 1000)
			},
			[]string{"<title>Fine"},
		},
		"who leads instead": {
			func(_ *testing.T, m *ops.Metrics, _ *books) {
				m.Leads(0)
				m.State(pipeline.Standby, "another one leads")
			},
			[]string{"<title>Fine", "Standing by; host-a:12:XYZ leads: streaming", "stands by", "takes over when that one ends"},
		},
		"that delivery is late": {
			func(_ *testing.T, m *ops.Metrics, _ *books) {
				look(m, 2000)
				after(90 * time.Second)
			},
			[]string{"<title>Trouble", "Delivery is 91 s late", "committed until 91 s ago"},
		},
		"what was delivered up to when, before a session that ended": {
			func(_ *testing.T, m *ops.Metrics, _ *books) {
				look(m, 1000) // passes the mark of before
				m.Leads(0)
				m.Retry(pipeline.Postgres)
				m.State(pipeline.Paused, "connection refused")
				after(20 * time.Second)
			},
			[]string{"<title>Trouble", "Everything that was committed until 21 s ago is in ClickHouse"},
		},
		"that nothing is known of the lag after a takeover": {
			func(_ *testing.T, m *ops.Metrics, _ *books) {
				look(m, 1000) // passes the mark of before
				m.State(pipeline.Standby, "another one leads")
				m.Leads(8)
				m.State(pipeline.Streaming, "")
				after(3 * time.Second)
			},
			[]string{"How late delivery is will be known once"},
		},
		"that ClickHouse is away, although nothing waits": {
			func(t *testing.T, m *ops.Metrics, _ *books) {
				t.Helper()
				survey(t, m, found{err: errors.New("refused")})
			},
			[]string{"<title>Check", "ClickHouse does not answer; no event waits for it yet"},
		},
		"what only Postgres knows": {
			func(_ *testing.T, _ *ops.Metrics, b *books) { b.status.Held = 3 },
			[]string{"<title>Check", "3 rows in quarantine"},
		},
		"what a doctor has found, failures first": {
			func(t *testing.T, m *ops.Metrics, _ *books) {
				t.Helper()
				examine(t, m, report(
					doctor.Finding{Check: "postgres.fsync", Result: doctor.Warn, Seen: "fsync is <off>", Wanted: "on", Mend: "ALTER SYSTEM SET fsync = on"},
					doctor.Finding{Check: "target.ttl", Result: doctor.OK, Seen: "none"},
					doctor.Finding{Check: "target.disk", Result: doctor.Fail, Seen: "1 MB left", Wanted: "space for events", Mend: "make room"},
				))
				after(3 * time.Minute)
				look(m, 1000)
			},
			[]string{
				"<title>Check", "; 1 check failed, see below", "1 failed, 1 warned, 1 ok, 3 min ago", `<tr class="fail"><th scope="row">target.disk</th>`, "fsync is &lt;off&gt;",
				"Wanted: on", "<code>ALTER SYSTEM SET fsync = on</code>",
			},
		},
		"that a doctor has found nothing": {
			func(t *testing.T, m *ops.Metrics, _ *books) {
				t.Helper()
				examine(t, m, report(doctor.Finding{Check: "target.ttl", Result: doctor.OK}))
			},
			[]string{"<title>Fine", "are as they should be"},
		},
		"that no doctor has looked": {
			func(t *testing.T, m *ops.Metrics, _ *books) {
				t.Helper()
				examine(t, m, report(doctor.Finding{Check: "clickhouse.reachable", Result: doctor.Fail}))
			},
			[]string{"not looked yet"},
		},
		"that it stops": {
			func(_ *testing.T, m *ops.Metrics, _ *books) { m.State(pipeline.Stopped, "") },
			[]string{"<title>Check", "This daemon is stopping"},
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			synctest.Test(t, func(t *testing.T) {
				m, b := streaming(), healthy()
				c.happens(t, m, b)
				has(t, shown(t, pageOf(m, b, true)), c.want...)
			})
		})
	}
}

// TestPageSaysLateWithoutTheLedger has a daemon whose delivery is late by its own reckoning, while the ledger can't be read.
func TestPageSaysLateWithoutTheLedger(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		m, b := streaming(), healthy()
		p := pageOf(m, b, true)
		shown(t, p)
		look(m, 2000)
		b.err = errors.New("canceling statement due to statement timeout")
		after(10 * time.Minute)
		if page := shown(t, p); !strings.Contains(page, "<title>Trouble") || strings.Contains(page, "Delivery goes on") {
			t.Errorf("ten minutes late, and the page says:\n%s", page)
		}
	})
}
