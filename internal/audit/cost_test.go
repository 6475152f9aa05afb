package audit_test

import (
	"os"
	"strconv"
	"strings"
	"testing"

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
	bench := func(b *testing.B, missing uint64) {
		b.Helper()
		for b.Loop() {
			report := p.run(b)
			if report.Postgres != uint64(n) || report.Differences[audit.Missing].Count != missing {
				b.Fatalf("%d events, %d missing; want %d, %d", report.Postgres, report.Differences[audit.Missing].Count, n, missing)
			}
		}
		b.ReportMetric(peakMiB(b), "peak-MiB")
		b.ReportMetric(float64(n)*float64(b.N)/b.Elapsed().Seconds(), "events/s")
	}
	b.Run("same", func(b *testing.B) { bench(b, 0) })
	p.execClickHouse(b, `DELETE FROM event_log WHERE id = `+strconv.Itoa(n/2))
	b.Run("one missing", func(b *testing.B) { bench(b, 1) })
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
