package ops

import (
	"testing"
	"time"

	"github.com/sluicebox/sluicebox/internal/batch"
)

// TestRecentIsBounded is about memory, which can't be seen from outside.
func TestRecentIsBounded(t *testing.T) {
	t.Parallel()
	var r recent
	now := time.Now()
	for i := range 10_000 {
		r.sample(now.Add(time.Duration(i)*sampleInterval), 0)
		r.settle(&batch.Batch{Seq: int64(i)}, now, time.Second, time.Second)
	}
	if len(r.points) != mostPoints || cap(r.points) > 2*mostPoints || !r.points[mostPoints-1].at.Equal(now.Add(9999*sampleInterval)) {
		t.Errorf("%d points, room for %d, want the newest %d", len(r.points), cap(r.points), mostPoints)
	}
	if len(r.timings) != mostTimings || cap(r.timings) > 2*mostTimings || r.timings[mostTimings-1].seq != 9999 {
		t.Errorf("%d timings, room for %d, want the newest %d", len(r.timings), cap(r.timings), mostTimings)
	}
}
