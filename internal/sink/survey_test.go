package sink_test

import (
	"testing"

	"github.com/ClickHouse/clickhouse-go/v2/lib/driver"

	"github.com/sluicebox/sluicebox/internal/testdb"
)

func TestSurvey(t *testing.T) {
	t.Parallel()
	protocols(t, func(t *testing.T, _ *testdb.DB, ch driver.Conn, address string) {
		t.Helper()
		if err := ch.Exec(t.Context(), `SYSTEM STOP MERGES event_log`); err != nil {
			t.Fatal(err)
		}
		var database string
		if err := ch.QueryRow(t.Context(), `SELECT currentDatabase()`).Scan(&database); err != nil {
			t.Fatal(err)
		}
		for _, name := range []string{"event_log", database + ".event_log"} {
			c := open(t, address, name)
			before, window, err := c.Survey(t.Context())
			if err != nil || window != -1 {
				t.Errorf("%s: window %d, %v; nobody has looked at the table yet", name, window, err)
			}
			for i := range 3 {
				if err := c.Write(t.Context(), newBatch(t, c, 1+10*i, 10)); err != nil { // each under a token of its own
					t.Fatal(err)
				}
			}
			target, err := c.Check(t.Context())
			if err != nil {
				t.Fatal(err)
			}
			after, window, err := c.Survey(t.Context())
			if err != nil || after != before+3 || uint64(window) != target.Window {
				t.Errorf("%s: %d parts, before three inserts %d, window %d, want %d; %v", name, after, before, window, target.Window, err)
			}
		}
		if err := ch.Exec(t.Context(), `DROP TABLE event_log`); err != nil {
			t.Fatal(err)
		}
		if parts, _, err := open(t, address, "event_log").Survey(t.Context()); err != nil || parts != 0 {
			t.Errorf("without the table: %d parts, %v", parts, err)
		}
	})
}
