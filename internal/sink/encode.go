package sink

import (
	"time"

	"github.com/sluicebox/sluicebox/internal/batch"
	"github.com/sluicebox/sluicebox/outbox"
)

// targetColumn is a column that the sink can fill.
type targetColumn struct {
	name     string
	required bool
	encode   func(*ClickHouse, *batch.Batch) any // a slice with a value for each row
}

// allColumns lists them in the order in which they are sent. A table may lack those that are not required.
func allColumns() []targetColumn {
	return []targetColumn{
		{"source", false, func(c *ClickHouse, b *batch.Batch) any { return each(b, func(*outbox.Row) string { return c.source }) }},
		{"id", true, func(_ *ClickHouse, b *batch.Batch) any {
			return each(b, func(r *outbox.Row) uint64 { return uint64(r.ID) })
		}},
		{"event_type", true, func(_ *ClickHouse, b *batch.Batch) any { return each(b, func(r *outbox.Row) string { return r.Type }) }},
		{"event_date_time", true, func(_ *ClickHouse, b *batch.Batch) any {
			return each(b, func(r *outbox.Row) time.Time { return r.Time })
		}},
		{"environment", true, func(_ *ClickHouse, b *batch.Batch) any {
			return each(b, func(r *outbox.Row) string { return r.Environment })
		}},
		{"event_context", true, func(_ *ClickHouse, b *batch.Batch) any {
			return each(b, func(r *outbox.Row) []byte { return r.Context })
		}},
		{"metadata_version", true, func(_ *ClickHouse, b *batch.Batch) any {
			return each(b, func(r *outbox.Row) uint32 { return uint32(r.MetadataVersion) })
		}},
		{"trace_id", false, func(_ *ClickHouse, b *batch.Batch) any {
			return each(b, func(r *outbox.Row) string { return traceID(r.TraceContext) })
		}},
		{"lsn", false, func(_ *ClickHouse, b *batch.Batch) any {
			return each(b, func(r *outbox.Row) uint64 { return r.Position.CommitLSN })
		}},
		{"ordinal", false, func(_ *ClickHouse, b *batch.Batch) any {
			return each(b, func(r *outbox.Row) uint32 { return r.Position.Ordinal })
		}},
		{deadlineColumn, false, func(_ *ClickHouse, b *batch.Batch) any {
			return each(b, func(*outbox.Row) time.Time { return b.Deadline })
		}},
	}
}

func each[T any](b *batch.Batch, value func(*outbox.Row) T) []T {
	out := make([]T, len(b.Rows))
	for i := range b.Rows {
		out[i] = value(&b.Rows[i])
	}
	return out
}

// traceID is the trace id of a W3C traceparent; empty when it is none. Any program may write trace_context, and an id that no
// tracer can look up is worse than none.
func traceID(traceparent string) string {
	const from, to = len("00-"), len("00-4bf92f3577b34da6a3ce929d0e0e4736")
	if !outbox.ValidTraceContext(traceparent) {
		return ""
	}
	return traceparent[from:to]
}
