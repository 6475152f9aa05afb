// Package ops is what an operator sees of the daemon: a status page, metrics and health, served on the admin address.
package ops

import (
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"

	"github.com/sluicebox/sluicebox/internal/batch"
	"github.com/sluicebox/sluicebox/internal/cli"
	"github.com/sluicebox/sluicebox/internal/pipeline"
	"github.com/sluicebox/sluicebox/internal/replication"
)

// Metrics is the pipeline's observer: it counts for Prometheus and remembers the state for the health endpoints.
type Metrics struct {
	Registry *prometheus.Registry

	received    prometheus.Counter
	skipped     prometheus.Counter
	delivered   prometheus.Counter
	quarantined prometheus.Counter
	found       prometheus.Counter
	batches     *prometheus.CounterVec
	rows        prometheus.Histogram
	bytes       prometheus.Histogram
	delivery    prometheus.Histogram
	attempts    *prometheus.CounterVec
	insert      prometheus.Histogram
	settle      prometheus.Histogram
	queryable   *weighted
	retries     *prometheus.CounterVec
	state       *prometheus.GaugeVec
	leading     prometheus.Gauge
	epoch       prometheus.Gauge
	standing    *standing
	surveyed    *surveyed
	examined    examined
	kept        *kept
	newest      prometheus.Gauge
	incidents   *prometheus.CounterVec
	ignored     prometheus.Gauge
	trimmed     prometheus.Counter
	dropped     prometheus.Counter

	recent *recent

	mu     sync.Mutex
	now    pipeline.State
	reason string
	began  bool // the pipeline has worked at least once
	held   held
}

// NewMetrics makes the metrics of one daemon. Units are base units, as Prometheus asks.
func NewMetrics(build cli.Build) *Metrics {
	m := &Metrics{
		Registry: prometheus.NewRegistry(),
		received: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "sluicebox_events_received_total", Help: "Events read from the replication stream, repeated ones included.",
		}),
		skipped: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "sluicebox_events_skipped_total", Help: "Events that were received and had been settled before: Postgres sends some again after a restart.",
		}),
		found: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "sluicebox_events_found_total", Help: "Events that were not sent again, because an attempt of unknown outcome turned out to have stored them.",
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
		bytes: prometheus.NewHistogram(prometheus.HistogramOpts{
			Name: "sluicebox_batch_bytes", Help: "Bytes in a settled batch, as CDC_BATCH_MAX_BYTES counts.", Buckets: prometheus.ExponentialBuckets(1024, 4, 10),
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
		settle: prometheus.NewHistogram(prometheus.HistogramOpts{
			Name: "sluicebox_settle_seconds", Help: "Duration of marking a batch in Postgres, with waiting and further tries.", Buckets: prometheus.ExponentialBuckets(0.005, 2, 14),
		}),
		queryable: newWeighted("sluicebox_commit_to_queryable_seconds",
			"From the commit of an event in Postgres to ClickHouse's confirmation, by Postgres's clock. Events read from the table are left out.",
			prometheus.ExponentialBuckets(0.01, 2, 18)), // 10 ms to 22 minutes
		retries: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "sluicebox_retries_total", Help: "Times that delivery was interrupted by a peer, postgres or clickhouse, and had to try again.",
		}, []string{"peer"}),
		leading: prometheus.NewGauge(prometheus.GaugeOpts{
			Name: "sluicebox_leading", Help: "1 while this daemon leads the stream, connected to Postgres; 0 while it stands by or is not connected.",
		}),
		epoch: prometheus.NewGauge(prometheus.GaugeOpts{
			Name: "sluicebox_epoch", Help: "How many times the lead was taken, by any daemon, as this one last led; 0: it has not led.",
		}),
		standing: &standing{current: time.Now()},
		surveyed: &surveyed{},
		kept:     &kept{},
		recent:   &recent{},
		state: prometheus.NewGaugeVec(prometheus.GaugeOpts{
			Name: "sluicebox_state", Help: "1 for what the daemon is doing now.",
		}, []string{"state"}),
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
		m.received, m.skipped, m.delivered, m.quarantined, m.found, m.batches, m.rows, m.bytes, m.delivery, m.attempts, m.insert, m.settle,
		m.queryable, m.retries, m.state, m.leading, m.epoch, m.standing, m.surveyed, m.kept, m.newest, m.incidents, m.ignored, m.trimmed, m.dropped, info,
		collectors.NewGoCollector(), collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}),
	)
	for _, peer := range []pipeline.Peer{pipeline.Postgres, pipeline.ClickHouse} { // a first retry is a rise from 0, not a series out of nothing
		m.retries.WithLabelValues(string(peer))
	}
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
	m.standing.stand(state == pipeline.Standby)
	m.began = m.began || works(state)
	m.held.enter(state, reason)
}

// Leads notes whether this daemon leads.
func (m *Metrics) Leads(epoch int64) {
	m.standing.lead()
	m.recent.lead(epoch)
	if epoch == 0 {
		m.leading.Set(0)
		return
	}
	m.leading.Set(1)
	m.epoch.Set(float64(epoch))
}

// Received counts events of the stream.
func (m *Metrics) Received(rows, skipped int) {
	m.received.Add(float64(rows))
	m.skipped.Add(float64(skipped))
	m.recent.receive(rows)
}

// Progress notes how far delivery is.
func (m *Metrics) Progress(delivered uint64, oldest int64) { m.standing.progress(delivered, oldest) }

// InHand notes how many rows are under way.
func (m *Metrics) InHand(gathered, writing, settling int) {
	m.recent.hold(inHand{gathered: gathered, writing: writing, settling: settling})
}

// Found counts events that a look-up found.
func (m *Metrics) Found(rows int) { m.found.Add(float64(rows)) }

// Retry counts interruptions.
func (m *Metrics) Retry(peer pipeline.Peer) {
	m.retries.WithLabelValues(string(peer)).Inc()
	m.mu.Lock()
	defer m.mu.Unlock()
	m.held.by = peer
}

// Planned tells nothing that is counted.
func (*Metrics) Planned(*batch.Batch) {}

// Attempt counts an insert.
func (m *Metrics) Attempt(outcome string, took time.Duration) {
	m.attempts.WithLabelValues(outcome).Inc()
	m.insert.Observe(took.Seconds())
	m.surveyed.insert(time.Now())
}

// Settled counts a batch that is wholly delivered.
func (m *Metrics) Settled(b *batch.Batch, took, settling time.Duration) {
	m.delivered.Add(float64(len(b.IDs)))
	m.quarantined.Add(float64(len(b.Rejected)))
	m.batches.WithLabelValues(string(b.SealedBy)).Inc()
	m.rows.Observe(float64(len(b.IDs)))
	m.bytes.Observe(float64(b.Bytes))
	m.delivery.Observe(took.Seconds())
	m.settle.Observe(settling.Seconds())
	stored := m.standing.onPostgres(b.Stored)
	for _, commit := range b.Commits {
		m.queryable.observe(since(commit.At, stored).Seconds(), commit.Rows)
	}
	m.recent.settle(b, stored, took, settling)
	m.newest.SetToCurrentTime()
}

// Slot notes what the slot is like.
func (m *Metrics) Slot(slot replication.SlotState, asked, answered time.Time) {
	m.standing.look(slot, asked, answered)
}

// Incident counts a loss that was noticed.
func (m *Metrics) Incident(kind string) { m.incidents.WithLabelValues(kind).Inc() }

// Columns notes how many columns are not carried.
func (m *Metrics) Columns(ignored int) { m.ignored.Set(float64(ignored)) }

// Trimmed counts what retention has removed.
func (m *Metrics) Trimmed(rows int64, partitions int) {
	m.trimmed.Add(float64(rows))
	m.dropped.Add(float64(partitions))
}
