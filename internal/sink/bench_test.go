package sink

import (
	"bytes"
	"fmt"
	"testing"
	"time"

	"github.com/ClickHouse/ch-go/proto"
	"github.com/ClickHouse/clickhouse-go/v2/lib/column"
	"github.com/ClickHouse/clickhouse-go/v2/lib/driver"

	"github.com/sluicebox/sluicebox/internal/batch"
	"github.com/sluicebox/sluicebox/outbox"
)

// openColumn is a column of a block that is not sent.
type openColumn struct {
	driver.BatchColumn
	column.Interface
}

func (c openColumn) Append(v any) error {
	_, err := c.Interface.Append(v)
	return err
}
func (c openColumn) AppendRow(v any) error { return c.Interface.AppendRow(v) }

// BenchmarkEncode writes a block of 50 000 rows of about 300 bytes, as the native protocol has it, without compression.
func BenchmarkEncode(b *testing.B) {
	const rows = 50_000
	c := &ClickHouse{source: "sluicebox"}
	filled := &batch.Batch{Deadline: time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)}
	for i := range rows {
		filled.Rows = append(filled.Rows, outbox.Row{
			ID: int64(i), Type: "user has been created", Environment: "production", MetadataVersion: 1, Context: bytes.Repeat([]byte("x"), 230),
			Time: filled.Deadline.Add(time.Duration(i) * time.Millisecond), Position: outbox.Position{CommitLSN: uint64(i / 100), Ordinal: uint32(i % 100)},
		})
	}
	types := map[string]column.Type{
		"source": "LowCardinality(String)", "id": "UInt64", "event_type": "LowCardinality(String)", "event_date_time": "DateTime64(6, 'UTC')",
		"environment": "LowCardinality(String)", "event_context": "String", "metadata_version": "UInt32", "trace_id": "String", "lsn": "UInt64",
		"ordinal": "UInt32", deadlineColumn: "DateTime('UTC')",
	}
	columns := allColumns()
	var buffer proto.Buffer
	b.ReportAllocs()
	for b.Loop() {
		buffer.Reset()
		for _, target := range columns {
			open, err := types[target.name].Column(target.name, &column.ServerContext{Timezone: time.UTC})
			if err != nil {
				b.Fatal(err)
			}
			if err := target.fill(c, filled, openColumn{Interface: open}, open); err != nil {
				b.Fatal(fmt.Errorf("%s: %w", target.name, err))
			}
			open.Encode(&buffer)
		}
	}
	b.ReportMetric(float64(b.Elapsed().Nanoseconds())/float64(b.N)/rows, "ns/event")
}
