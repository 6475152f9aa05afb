package audit_test

import (
	"os"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/sluicebox/sluicebox/internal/audit"
)

// BenchmarkAudit tells what an audit costs; AUDIT_ROWS says of how many events, 100 000 by default:
//
//	AUDIT_ROWS=1000000 go test -run '^$' -bench Audit -benchtime 1x ./internal/audit
func BenchmarkAudit(b *testing.B) {
	n := 100_000
	if text := os.Getenv("AUDIT_ROWS"); text != "" {
		var err error
		if n, err = strconv.Atoi(text); err != nil {
			b.Fatal(err)
		}
	}
	p := delivered(b, n)
	bench := func(b *testing.B, missing uint64, change func(*audit.Config)) {
		b.Helper()
		for b.Loop() {
			report := p.run(b, change)
			if report.Postgres == 0 || report.Differences[audit.Missing].Count != missing {
				b.Fatalf("%d events, %d missing; want %d missing", report.Postgres, report.Differences[audit.Missing].Count, missing)
			}
		}
		b.ReportMetric(peakMiB(b), "peak-MiB")
	}
	b.Run("same", func(b *testing.B) { bench(b, 0, func(*audit.Config) {}) })
	b.Run("same, of the last day", func(b *testing.B) {
		var last time.Time
		if err := p.pg.QueryRow(b.Context(), `SELECT max(event_date_time) FROM event_outbox`).Scan(&last); err != nil {
			b.Fatal(err)
		}
		bench(b, 0, func(c *audit.Config) { c.Since = last.Add(-24 * time.Hour) })
	})
	p.execClickHouse(b, `DELETE FROM event_log WHERE id = `+strconv.Itoa(n/2))
	b.Run("one missing", func(b *testing.B) { bench(b, 1, func(*audit.Config) {}) })
}

// peakMiB is the largest resident size that this process has had; the databases are processes of their own.
func peakMiB(b *testing.B) float64 {
	b.Helper()
	status, err := os.ReadFile("/proc/self/status")
	if err != nil {
		b.Skip("only Linux tells the peak memory")
	}
	_, rest, _ := strings.Cut(string(status), "VmHWM:")
	kib, err := strconv.ParseFloat(strings.Fields(rest)[0], 64)
	if err != nil {
		b.Fatal(err)
	}
	return kib / 1024
}
