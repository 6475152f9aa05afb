package ops

import "time"

// sliding counts what happened within a span of time, up to a sixtieth of it more, in little memory whatever the rate.
type sliding struct {
	began  time.Time
	width  time.Duration // of a part of the span; 0: nothing is counted
	newest int64         // part that was counted last
	counts [slidingParts]int64
}

const slidingParts = 61 // the newest one is not over yet

func newSliding(span time.Duration, now time.Time) sliding {
	return sliding{began: now, width: span / (slidingParts - 1)}
}

func (r *sliding) add(now time.Time) {
	if r.width > 0 {
		r.pass(now)
		r.counts[r.newest%slidingParts]++
	}
}

func (r *sliding) sum(now time.Time) (n int64) {
	if r.width > 0 {
		r.pass(now)
	}
	for _, count := range r.counts {
		n += count
	}
	return n
}

// pass forgets the parts that are too old now.
func (r *sliding) pass(now time.Time) {
	part := int64(now.Sub(r.began) / r.width)
	for range min(part-r.newest, slidingParts) {
		r.newest++
		r.counts[r.newest%slidingParts] = 0
	}
	r.newest = max(r.newest, part)
}
