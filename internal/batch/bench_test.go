package batch

import (
	"testing"
	"time"
)

// BenchmarkGather adds one row, and seals each 50 000.
func BenchmarkGather(b *testing.B) {
	builder := NewBuilder(Limits{Rows: 50_000, Bytes: 16 << 20, Delay: time.Hour})
	r := row(1, day, `{"k": "v"}`)
	b.ReportAllocs()
	for b.Loop() {
		if builder.Before(r) != "" {
			builder.Seal(ByBytes)
		}
		builder.Add(r)
		if builder.Full() != "" {
			builder.Seal(ByRows)
		}
	}
}
