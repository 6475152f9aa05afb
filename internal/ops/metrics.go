// Package ops is what an operator sees of the daemon: metrics and health, served on the admin address.
package ops

import (
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"

	"github.com/sluicebox/sluicebox/internal/batch"
	"github.com/sluicebox/sluicebox/internal/cli"
	"github.com/sluicebox/sluicebox/internal/pipeline"
)

// Metrics is the pipeline's observer: it counts for Prometheus and remembers the state for the health endpoints.
type Metrics struct {
	Registry *prometheus.Registry

	received    prometheus.Counter
	delivered   prometheus.Counter
	quarantined prometheus.Counter
	batches     *prometheus.CounterVec
	rows        prometheus.Histogram
	delivery    prometheus.Histogram
	attempts    *prometheus.CounterVec
	insert      prometheus.Histogram
	state       *prometheus.GaugeVec
	retained    prometheus.Gauge
	newest      prometheus.Gauge
	incidents   *prometheus.CounterVec
	ignored     prometheus.Gauge
	trimmed     prometheus.Counter
	dropped     prometheus.Counter

	mu     sync.Mutex
	now    pipeline.State
	reason string
	began  bool // the pipeline has worked at least once
}

// NewMetrics makes the metrics of one daemon. Units are base units, as Prometheus asks.
func NewMetrics(build cli.Build) *Metrics {
	m := &Metrics{
		Registry: prometheus.NewRegistry(),
		received: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "sluicebox_events_received_total", Help: "Events read from the replication stream, repeated ones included.",
		}),
		delivered: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "sluicebox_events_delivered_total", Help: "Events that are in ClickHouse and marked processed.",
		}),
		quarantined: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "sluicebox_events_quarantined_total", Help: "Events that ClickHouse can never take, put into quarantine.",
		}),
		batches: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "sluicebox_batches_settled_total", Help: "Batches settled, by what sealed them.",
		}, []string{"sealed_by"}),
		rows: prometheus.NewHistogram(prometheus.HistogramOpts{
			Name: "sluicebox_batch_rows", Help: "Rows in a settled batch.", Buckets: prometheus.ExponentialBuckets(1, 4, 9),
		}),
		delivery: prometheus.NewHistogram(prometheus.HistogramOpts{
			Name: "sluicebox_batch_delivery_seconds", Help: "From sealing a batch to its settlement.", Buckets: prometheus.ExponentialBuckets(0.005, 2, 14),
		}),
		attempts: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "sluicebox_insert_attempts_total",
			Help: "Inserts sent to ClickHouse, by outcome: ok, unknown (sent again under the same token), configuration, data, expired.",
		}, []string{"outcome"}),
		insert: prometheus.NewHistogram(prometheus.HistogramOpts{
			Name: "sluicebox_insert_seconds", Help: "Duration of inserts, failed ones included.", Buckets: prometheus.ExponentialBuckets(0.005, 2, 14),
		}),
		state: prometheus.NewGaugeVec(prometheus.GaugeOpts{
			Name: "sluicebox_state", Help: "1 for what the daemon is doing now.",
		}, []string{"state"}),
		retained: prometheus.NewGauge(prometheus.GaugeOpts{
			Name: "sluicebox_slot_retained_wal_bytes", Help: "WAL that Postgres keeps for the slot. Grows while nothing is acknowledged.",
		}),
		newest: prometheus.NewGauge(prometheus.GaugeOpts{
			Name: "sluicebox_last_settled_timestamp_seconds", Help: "When a batch was last settled, Unix time.",
		}),
		trimmed: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "sluicebox_outbox_trimmed_rows_total", Help: "Settled rows deleted from the outbox by CDC_RETENTION. Rows of dropped partitions are not counted.",
		}),
		dropped: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "sluicebox_outbox_trimmed_partitions_total", Help: "Partitions of the outbox dropped by CDC_RETENTION.",
		}),
		incidents: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "sluicebox_incidents_total", Help: "Losses that were noticed, by kind; cdc status lists them.",
		}, []string{"kind"}),
		ignored: prometheus.NewGauge(prometheus.GaugeOpts{
			Name: "sluicebox_ignored_columns", Help: "Columns of the outbox that the table in ClickHouse lacks.",
		}),
	}
	info := prometheus.NewGauge(prometheus.GaugeOpts{
		Name: "sluicebox_build_info", Help: "1; the labels tell which program this is.",
		ConstLabels: prometheus.Labels{"version": build.Version, "revision": build.Revision, "go": build.Go},
	})
	info.Set(1)
	m.Registry.MustRegister(
		m.received, m.delivered, m.quarantined, m.batches, m.rows, m.delivery, m.attempts, m.insert, m.state, m.retained, m.newest,
		m.incidents, m.ignored, m.trimmed, m.dropped, info,
		collectors.NewGoCollector(), collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}),
	)
	return m
}

// State notes what the pipeline is doing.
func (m *Metrics) State(state pipeline.State, reason string) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.now != "" {
		m.state.WithLabelValues(string(m.now)).Set(0)
	}
	m.state.WithLabelValues(string(state)).Set(1)
	m.now, m.reason = state, reason
	m.began = m.began || state == pipeline.Standby || state == pipeline.Streaming
}

// Received counts events of the stream.
func (m *Metrics) Received(rows int) { m.received.Add(float64(rows)) }

// Attempt counts an insert.
func (m *Metrics) Attempt(outcome string, took time.Duration) {
	m.attempts.WithLabelValues(outcome).Inc()
	m.insert.Observe(took.Seconds())
}

// Settled counts a batch that is wholly delivered.
func (m *Metrics) Settled(b *batch.Batch, took time.Duration) {
	m.delivered.Add(float64(len(b.IDs)))
	m.quarantined.Add(float64(len(b.Rejected)))
	m.batches.WithLabelValues(string(b.SealedBy)).Inc()
	m.rows.Observe(float64(len(b.IDs)))
	m.delivery.Observe(took.Seconds())
	m.newest.SetToCurrentTime()
}

// Slot notes how much WAL the slot holds.
func (m *Metrics) Slot(retained int64) { m.retained.Set(float64(retained)) }

// Incident counts a loss that was noticed.
func (m *Metrics) Incident(kind string) { m.incidents.WithLabelValues(kind).Inc() }

// Columns notes how many columns are not carried.
func (m *Metrics) Columns(ignored int) { m.ignored.Set(float64(ignored)) }

// Trimmed counts what retention has removed.
func (m *Metrics) Trimmed(rows int64, partitions int) {
	m.trimmed.Add(float64(rows))
	m.dropped.Add(float64(partitions))
}
