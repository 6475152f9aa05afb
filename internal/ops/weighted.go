package ops

import (
	"slices"
	"sync"

	"github.com/prometheus/client_golang/prometheus"
)

// weighted is a histogram that takes many equal values at once: the events of a batch are too many to be observed one by one.
type weighted struct {
	desc   *prometheus.Desc
	bounds []float64

	mu     sync.Mutex
	counts []uint64 // one a bound; what is larger than the last one is in count alone
	count  uint64
	sum    float64
}

func newWeighted(name, help string, bounds []float64) *weighted {
	return &weighted{desc: prometheus.NewDesc(name, help, nil, nil), bounds: bounds, counts: make([]uint64, len(bounds))}
}

// observe takes a value n times.
func (w *weighted) observe(value float64, n int) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if i, _ := slices.BinarySearch(w.bounds, value); i < len(w.counts) { // a bound belongs to its bucket
		w.counts[i] += uint64(n)
	}
	w.count += uint64(n)
	w.sum += value * float64(n)
}

// Describe is for Prometheus.
func (w *weighted) Describe(descs chan<- *prometheus.Desc) { descs <- w.desc }

// Collect is for Prometheus.
func (w *weighted) Collect(metrics chan<- prometheus.Metric) { metrics <- w.metric() }

func (w *weighted) metric() prometheus.Metric {
	w.mu.Lock()
	defer w.mu.Unlock()
	buckets, total := make(map[float64]uint64, len(w.bounds)), uint64(0)
	for i, bound := range w.bounds {
		total += w.counts[i]
		buckets[bound] = total
	}
	return prometheus.MustNewConstHistogram(w.desc, w.count, w.sum, buckets)
}
