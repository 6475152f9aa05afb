package sink_test

import (
	"errors"
	"fmt"
	"strings"
	"testing"

	"github.com/ClickHouse/clickhouse-go/v2/lib/driver"

	"github.com/sluicebox/sluicebox/internal/batch"
	"github.com/sluicebox/sluicebox/internal/testdb"
)

// TestRefusalsTellNoValues has ClickHouse refuse content in words that repeat it, mostly without quotes.
func TestRefusalsTellNoValues(t *testing.T) {
	t.Parallel()
	protocols(t, func(t *testing.T, _ *testdb.DB, ch driver.Conn, address string) {
		t.Helper()
		for i, c := range []struct{ kind, expression, content string }{
			{"JSON", `event_context::JSON`, `"planted"`},
			{"JSON(a UInt32)", `CAST(event_context, 'JSON(a UInt32)')`, `{"a": {"b": "planted"}}`},
			{"UUID", `toUUID(JSONExtractString(event_context, 'v'))`, `{"v": "planted"}`},
			{"UUID", `toUUID(base64Decode(JSONExtractString(event_context, 'v')))`, `{"v": "8J9wbGFudGVkAA=="}`}, // not UTF-8, and a NUL
			{"IPv4", `toIPv4(JSONExtractString(event_context, 'v'))`, `{"v": "planted"}`},
			{"Float64", `toFloat64(JSONExtractString(event_context, 'v'))`, `{"v": "planted"}`},
			{"String", `base64Decode(JSONExtractString(event_context, 'v'))`, `{"v": "planted!"}`},
			{"String", `replaceRegexpAll('x', JSONExtractString(event_context, 'v'), 'y')`, `{"v": "(planted"}`},
			{"Array(UInt8)", `CAST(JSONExtractString(event_context, 'v'), 'Array(UInt8)')`, `{"v": "planted"}`},
		} {
			name := fmt.Sprintf("c%d", i)
			if err := ch.Exec(t.Context(), `ALTER TABLE event_log ADD COLUMN `+name+` `+c.kind+` MATERIALIZED `+c.expression); err != nil {
				t.Fatal(err)
			}
			s := open(t, address, "event_log")
			b := newBatch(t, s, 100+i, 1)
			b.Rows[0].Context = []byte(c.content)
			err := s.Write(t.Context(), b)
			var failure *batch.Failure
			if !errors.As(err, &failure) || failure.Class != batch.Data && failure.Class != batch.Unlisted || strings.Contains(err.Error(), "planted") {
				t.Errorf("%s: %v", c.expression, err)
			}
			if err := ch.Exec(t.Context(), `ALTER TABLE event_log DROP COLUMN `+name); err != nil {
				t.Fatal(err)
			}
		}
	})
}
