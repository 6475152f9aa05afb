package replication

import (
	"strings"
	"testing"
)

// BenchmarkDecode reads one row of about 300 bytes. What it allocates is the row's own context, a block for some 200 rows.
func BenchmarkDecode(b *testing.B) {
	d := newDecoder("public", "event_outbox")
	names := []string{"id", "event_type", "event_date_time", "environment", "event_context", "metadata_version", "trace_context", "processed", "processed_at"}
	for _, m := range [][]byte{relation(7, "public", names...), begin(1000)} {
		if _, _, err := d.decode(m); err != nil {
			b.Fatal(err)
		}
	}
	row := insert(7, "4711", "user has been created", "2026-01-02 03:04:05.678901+00", "production", `{"k": "`+strings.Repeat("x", 200)+`"}`, "1", nil, "f", nil)
	b.ReportAllocs()
	for b.Loop() {
		if _, ok, err := d.decode(row); err != nil || !ok {
			b.Fatal(ok, err)
		}
	}
}
