package ops

import "time"

// recent counts what happened within a span of time, up to a sixtieth of it more, in little memory whatever the rate.
type recent struct {
	began  time.Time
	width  time.Duration // of a part of the span; 0: nothing is counted
	newest int64         // part that was counted last
	counts [recentParts]int64
}

const recentParts = 61 // the newest one is not over yet

func newRecent(span time.Duration, now time.Time) recent {
	return recent{began: now, width: span / (recentParts - 1)}
}

func (r *recent) add(now time.Time) {
	if r.width > 0 {
		r.pass(now)
		r.counts[r.newest%recentParts]++
	}
}

func (r *recent) sum(now time.Time) (n int64) {
	if r.width > 0 {
		r.pass(now)
	}
	for _, count := range r.counts {
		n += count
	}
	return n
}

// pass forgets the parts that are too old now.
func (r *recent) pass(now time.Time) {
	part := int64(now.Sub(r.began) / r.width)
	for range min(part-r.newest, recentParts) {
		r.newest++
		r.counts[r.newest%recentParts] = 0
	}
	r.newest = max(r.newest, part)
}
