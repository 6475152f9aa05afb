package sink

import (
	"slices"
	"time"

	columns "github.com/ClickHouse/clickhouse-go/v2/lib/column"
	"github.com/ClickHouse/clickhouse-go/v2/lib/driver"

	"github.com/sluicebox/sluicebox/internal/batch"
	"github.com/sluicebox/sluicebox/outbox"
)

// targetColumn is a column that the sink can fill.
type targetColumn struct {
	name     string
	required bool
	fill     filler
}

// filler gives a column its value for each row. raw is the same column as the client holds it.
type filler func(c *ClickHouse, b *batch.Batch, column driver.BatchColumn, raw columns.Interface) error

// allColumns lists them in the order in which they are sent. A table may lack those that are not required. They belong to one writer.
func allColumns() []targetColumn {
	return []targetColumn{
		{"source", false, repeating(func(c *ClickHouse, _ *batch.Batch, _ *outbox.Row) string { return c.source })},
		{"id", true, varying(func(r *outbox.Row) uint64 { return uint64(r.ID) })},
		{"event_type", true, repeating(func(_ *ClickHouse, _ *batch.Batch, r *outbox.Row) string { return r.Type })},
		{"event_date_time", true, eventTimes()},
		{"environment", true, repeating(func(_ *ClickHouse, _ *batch.Batch, r *outbox.Row) string { return r.Environment })},
		{"event_context", true, contexts()},
		{"metadata_version", true, varying(func(r *outbox.Row) uint32 { return uint32(r.MetadataVersion) })},
		{"trace_id", false, varying(func(r *outbox.Row) string { return traceID(r.TraceContext) })},
		{"lsn", false, varying(func(r *outbox.Row) uint64 { return r.Position.CommitLSN })},
		{"ordinal", false, varying(func(r *outbox.Row) uint32 { return r.Position.Ordinal })},
		{deadlineColumn, false, repeating(func(_ *ClickHouse, b *batch.Batch, _ *outbox.Row) time.Time { return b.Deadline })},
	}
}

// varying fills a column whose values differ from row to row: all at once, which costs the client least.
func varying[T any](value func(*outbox.Row) T) filler {
	var values []T // used again for each batch
	return func(_ *ClickHouse, b *batch.Batch, column driver.BatchColumn, _ columns.Interface) error {
		values = slices.Grow(values[:0], len(b.Rows))
		for i := range b.Rows {
			values = append(values, value(&b.Rows[i]))
		}
		err := column.Append(values) // copies them
		clear(values)                // so that the batch is not kept
		return err
	}
}

// eventTimes fills the column of event_date_time. Times are cut to its precision here: the client rounds those before 1970 up, which may be
// into another partition.
func eventTimes() filler {
	var cut time.Duration
	fill := varying(func(r *outbox.Row) time.Time { return r.Time.Truncate(cut) })
	return func(c *ClickHouse, b *batch.Batch, column driver.BatchColumn, raw columns.Interface) error {
		if cut = precision(string(raw.Type())); cut <= time.Microsecond {
			cut = 0 // nothing is cut off
		}
		return fill(c, b, column, raw)
	}
}

// repeating fills a column whose values repeat from row to row. Given all at once, the client would allocate each anew.
func repeating[T comparable](value func(*ClickHouse, *batch.Batch, *outbox.Row) T) filler {
	return func(c *ClickHouse, b *batch.Batch, column driver.BatchColumn, _ columns.Interface) error {
		var last T
		var boxed any = last
		for i := range b.Rows {
			if v := value(c, b, &b.Rows[i]); v != last {
				last, boxed = v, v
			}
			if err := column.AppendRow(boxed); err != nil {
				return err
			}
		}
		return nil
	}
}

// contexts fills the column of event_context, which is most of a batch. A String column takes texts by reference without allocating, but
// grows by a quarter at a time, and so would copy a batch's contexts five times over. It keeps its room when it is reset: it gets all of it
// at once, by one value that is thrown away.
func contexts() filler {
	anyType := varying(func(r *outbox.Row) []byte { return r.Context })
	return func(c *ClickHouse, b *batch.Batch, column driver.BatchColumn, raw columns.Interface) error {
		text, ok := raw.(*columns.String)
		if !ok {
			return anyType(c, b, column, raw)
		}
		size := 0
		for i := range b.Rows {
			size += len(b.Rows[i].Context)
		}
		if err := zeros(size, func(room []byte) error { return text.AppendRow(&room) }); err != nil {
			return err
		}
		text.Reset()
		for i := range b.Rows {
			if err := text.AppendRow(&b.Rows[i].Context); err != nil {
				return err
			}
		}
		return nil
	}
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
