package ops

import (
	"context"
	"math"
	"slices"
	"sync"
	"time"

	"github.com/sluicebox/sluicebox/internal/batch"
	"github.com/sluicebox/sluicebox/internal/pipeline"
)

const (
	sampleInterval = 5 * time.Second
	// mostPoints is an hour of samples, 30 kB.
	mostPoints = int(time.Hour / sampleInterval)
	// mostTimings is how many batches the page may ask for, and some more that are settled while it asks.
	mostTimings = 2 * listedBatches
)

// recent is what the status page shows of the last hour that Postgres does not know, in bounded memory, and the log's summary of its last minute.
type recent struct {
	mu       sync.Mutex
	epoch    int64 // 0: this daemon does not lead
	hand     inHand
	received uint64
	settled  tally
	latency  sketch // since the last point
	points   []point
	timings  []timing // of the newest batches, newest last
}

// tally is what was delivered since the start.
type tally struct{ events, batches, quarantined uint64 }

// inHand counts rows under way.
type inHand struct{ gathered, writing, settling int }

// point is what was sampled at one moment. What is not known is NaN.
type point struct {
	at        time.Time
	received  uint64
	delivered uint64
	lag       float64 // seconds
	rate      float64 // events delivered a second, since the point before
	p50, p99  float64 // seconds from commit to queryable, of what was delivered since the point before
}

// timing is how long the steps of a batch took.
type timing struct {
	seq           int64
	write, settle time.Duration
	rejected      int
}

func (r *recent) lead(epoch int64) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.epoch, r.hand = epoch, inHand{}
}

func (r *recent) hold(hand inHand) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.hand = hand
}

func (r *recent) receive(rows int) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.received += uint64(rows)
}

func (r *recent) settle(b *batch.Batch, stored time.Time, took, settling time.Duration) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.settled.events += uint64(len(b.IDs))
	r.settled.batches++
	r.settled.quarantined += uint64(len(b.Rejected))
	for _, commit := range b.Commits {
		r.latency.add(since(commit.At, stored).Seconds(), commit.Rows)
	}
	if len(r.timings) == mostTimings {
		r.timings = slices.Delete(r.timings, 0, 1)
	}
	r.timings = append(r.timings, timing{seq: b.Seq, write: max(0, took-settling), settle: settling, rejected: len(b.Rejected)})
}

// total is what was delivered since the start, and whether this daemon leads.
func (r *recent) total() (leads bool, sum tally) {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.epoch != 0, r.settled
}

// sample adds a point.
func (r *recent) sample(now time.Time, lag float64) {
	r.mu.Lock()
	defer r.mu.Unlock()
	p := point{
		at: now, received: r.received, delivered: r.settled.events, lag: lag, rate: math.NaN(),
		p50: r.latency.quantile(0.5), p99: r.latency.quantile(0.99),
	}
	r.latency = sketch{}
	if n := len(r.points); n > 0 && r.epoch != 0 {
		p.rate = rate(r.points[n-1].delivered, p.delivered, r.points[n-1].at, now)
	}
	if len(r.points) == mostPoints {
		r.points = slices.Delete(r.points, 0, 1)
	}
	r.points = append(r.points, p)
}

// rate is how many a second that is.
func rate(before, after uint64, from, to time.Time) float64 {
	span := to.Sub(from).Seconds()
	if span <= 0 {
		return math.NaN()
	}
	return float64(after-before) / span
}

// recently is a copy of what the page shows.
type recently struct {
	epoch     int64
	hand      inHand
	delivered uint64
	in, out   float64 // events received and delivered a second, over the last seconds; NaN: not known yet
	points    []point
	timings   map[int64]timing
}

func (r *recent) read(now time.Time) recently {
	r.mu.Lock()
	defer r.mu.Unlock()
	c := recently{
		epoch: r.epoch, hand: r.hand, delivered: r.settled.events, in: math.NaN(), out: math.NaN(),
		points: slices.Clone(r.points), timings: make(map[int64]timing, len(r.timings)),
	}
	if n := len(r.points); n > 0 && r.epoch != 0 { // the one before the last, so that a span is never too short for a rate
		since := r.points[max(0, n-2)]
		c.in, c.out = rate(since.received, r.received, since.at, now), rate(since.delivered, r.settled.events, since.at, now)
	}
	for _, t := range r.timings {
		c.timings[t.seq] = t
	}
	return c
}

// Record samples what the charts of the status page show, until ctx is done.
func (m *Metrics) Record(ctx context.Context) {
	tick := time.NewTicker(sampleInterval)
	defer tick.Stop()
	for {
		m.record(time.Now())
		select {
		case <-tick.C:
		case <-ctx.Done():
			return
		}
	}
}

func (m *Metrics) record(now time.Time) {
	lag := math.NaN()
	m.mu.Lock()
	stands := m.now == pipeline.Standby || m.now == ""
	m.mu.Unlock()
	if r := m.standing.read(); !r.standby && !stands {
		lag = r.lag.Seconds()
	}
	m.recent.sample(now, lag)
}

// sketch counts durations in buckets of which each is a tenth wider than the one before: that is how exact its quantiles are.
type sketch struct {
	counts [perOctave * 23]uint64 // from a millisecond to two hours
	total  uint64
}

const (
	perOctave = 8
	smallest  = 0.001
)

// add takes a value in seconds n times.
func (s *sketch) add(value float64, n int) {
	i := 0
	if value > smallest {
		i = min(int(math.Log2(value/smallest)*perOctave), len(s.counts)-1)
	}
	s.counts[i] += uint64(n)
	s.total += uint64(n)
}

// quantile is the middle of the bucket that holds it; NaN: nothing was added.
func (s *sketch) quantile(q float64) float64 {
	if s.total == 0 {
		return math.NaN()
	}
	rank, sum := uint64(math.Ceil(q*float64(s.total))), uint64(0)
	for i, n := range s.counts {
		if sum += n; sum >= max(rank, 1) {
			return smallest * math.Exp2((float64(i)+0.5)/perOctave)
		}
	}
	return math.NaN()
}
