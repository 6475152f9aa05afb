package ops

import (
	"context"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"
)

// Table is the table in ClickHouse.
type Table interface {
	// Survey gives the number of active parts of the partition that has most, and of inserts whose tokens are remembered; -1: not known yet.
	Survey(ctx context.Context) (parts, window int64, err error)
}

// surveyInterval is how often ClickHouse is asked. Parts become too many within minutes at the earliest.
const surveyInterval = 15 * time.Second

// Survey looks at the table again and again, beside delivery, until ctx is done. The watcher of the slot can't do it: it renews the lease, and
// must not wait for ClickHouse. deadline is for how long after its plan an insert may land, and so its token must be remembered.
func (m *Metrics) Survey(ctx context.Context, table Table, deadline time.Duration) {
	m.surveyed.remember(deadline)
	every(ctx, surveyInterval, func() {
		parts, window, err := table.Survey(ctx)
		if ctx.Err() == nil {
			m.surveyed.set(parts, window, err)
		}
	})
}

// every calls do at once, and then at an interval, until ctx is done.
func every(ctx context.Context, interval time.Duration, do func()) {
	tick := time.NewTicker(interval)
	defer tick.Stop()
	for {
		do()
		select {
		case <-tick.C:
		case <-ctx.Done():
			return
		}
	}
}

// surveyed is what the last survey found.
type surveyed struct {
	mu      sync.Mutex
	last    survey
	inserts sliding
}

// survey is what one of them found.
type survey struct {
	asked  bool
	up     bool
	parts  int64
	window int64
	used   int64 // inserts within the deadline
}

// remember is told for how long inserts count.
func (s *surveyed) remember(deadline time.Duration) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.inserts = newSliding(deadline, time.Now())
}

// insert notes that one was sent.
func (s *surveyed) insert(now time.Time) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.inserts.add(now)
}

func (s *surveyed) set(parts, window int64, err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.last = survey{asked: true, up: err == nil, parts: parts, window: window}
}

func (s *surveyed) read() survey {
	s.mu.Lock()
	defer s.mu.Unlock()
	last := s.last
	last.used = s.inserts.sum(time.Now())
	return last
}

//nolint:gochecknoglobals // constants of a type that can't be constant
var (
	clickhouseUp = prometheus.NewDesc("sluicebox_clickhouse_up",
		"1 if ClickHouse answered when it was asked last, within 15 seconds.", nil, nil)
	clickhouseParts = prometheus.NewDesc("sluicebox_clickhouse_parts",
		"Active parts of the partition of the table that has most.", nil, nil)
	clickhouseWindow = prometheus.NewDesc("sluicebox_clickhouse_deduplication_window_inserts",
		"Inserts whose tokens the table remembers; 0: it remembers none, and delivery is at least once.", nil, nil)
	clickhouseHeadroom = prometheus.NewDesc("sluicebox_clickhouse_deduplication_window_headroom_ratio",
		"Share of the deduplication window that is left by the inserts which this daemon has sent within CDC_INSERT_DEADLINE.", nil, nil)
)

// Describe is for Prometheus.
func (s *surveyed) Describe(descs chan<- *prometheus.Desc) {
	for _, desc := range []*prometheus.Desc{clickhouseUp, clickhouseParts, clickhouseWindow, clickhouseHeadroom} {
		descs <- desc
	}
}

// Collect is for Prometheus. What is not known is left out.
func (s *surveyed) Collect(metrics chan<- prometheus.Metric) {
	last := s.read()
	gauge := func(desc *prometheus.Desc, value float64) {
		metrics <- prometheus.MustNewConstMetric(desc, prometheus.GaugeValue, value)
	}
	switch {
	case !last.asked:
		return
	case !last.up:
		gauge(clickhouseUp, 0)
		return
	}
	gauge(clickhouseUp, 1)
	gauge(clickhouseParts, float64(last.parts))
	if last.window >= 0 {
		gauge(clickhouseWindow, float64(last.window))
	}
	if last.window > 0 {
		gauge(clickhouseHeadroom, 1-float64(last.used)/float64(last.window))
	}
}
