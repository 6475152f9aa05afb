package ops

import (
	"context"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/sluicebox/sluicebox/internal/ledger"
)

// Ledger is what others than this daemon write into the ledger, too: a *[ledger.Ledger].
type Ledger interface {
	HeldRows(ctx context.Context) (rows int64, err error)
	Audits(ctx context.Context) ([]ledger.Audited, error)
}

// keptInterval is how often the ledger is asked. Operators and audits change it, a few times a day.
const keptInterval = 30 * time.Second

// SurveyLedger looks at the ledger again and again, beside delivery, until ctx is done.
func (m *Metrics) SurveyLedger(ctx context.Context, books Ledger) {
	every(ctx, keptInterval, func() {
		held, heldErr := books.HeldRows(ctx)
		audits, auditsErr := books.Audits(ctx)
		if ctx.Err() == nil {
			m.kept.set(held, heldErr, audits, auditsErr)
		}
	})
}

// kept is what the last survey of the ledger found.
type kept struct {
	mu     sync.Mutex
	held   *int64 // nil: not known
	audits []ledger.Audited
}

func (k *kept) set(held int64, heldErr error, audits []ledger.Audited, auditsErr error) {
	k.mu.Lock()
	defer k.mu.Unlock()
	k.held, k.audits = &held, audits
	if heldErr != nil {
		k.held = nil
	}
	if auditsErr != nil {
		k.audits = nil
	}
}

//nolint:gochecknoglobals // constants of a type that can't be constant
var (
	quarantineRows = prometheus.NewDesc("sluicebox_quarantine_rows",
		"Events that are in quarantine now, without those that were given up.", nil, nil)
	auditDifferences = prometheus.NewDesc("sluicebox_audit_differences",
		"Events that differed between Postgres and ClickHouse at the end of the last audit, of all events or a part of them.", []string{"scope", "kind"}, nil)
	auditFinished = prometheus.NewDesc("sluicebox_audit_last_timestamp_seconds",
		"When the last audit ended, Unix time.", []string{"scope"}, nil)
)

// Describe is for Prometheus.
func (k *kept) Describe(descs chan<- *prometheus.Desc) {
	for _, desc := range []*prometheus.Desc{quarantineRows, auditDifferences, auditFinished} {
		descs <- desc
	}
}

// Collect is for Prometheus. What is not known is left out.
func (k *kept) Collect(metrics chan<- prometheus.Metric) {
	k.mu.Lock()
	held, audits := k.held, k.audits
	k.mu.Unlock()
	gauge := func(desc *prometheus.Desc, value float64, labels ...string) {
		metrics <- prometheus.MustNewConstMetric(desc, prometheus.GaugeValue, value, labels...)
	}
	if held != nil {
		gauge(quarantineRows, float64(*held))
	}
	for _, audit := range audits {
		gauge(auditFinished, float64(audit.FinishedAt.UnixMilli())/1000, string(audit.Scope))
		for kind, n := range audit.Differences {
			gauge(auditDifferences, float64(n), string(audit.Scope), kind)
		}
	}
}
