package ops

import "time"

// growth is how fast Postgres writes WAL: marks of the last minutes, oldest first.
type growth struct{ marks []mark }

const (
	// growthWindow is long enough to even out checkpoints, which make Postgres write whole pages for a while.
	growthWindow = 10 * time.Minute
	// growthStep is the space between two marks, so that they are few.
	growthStep = 10 * time.Second
	// growthLeast is from when on a rate is told. One of some seconds would be a guess.
	growthLeast = time.Minute
)

func (g *growth) add(now mark) {
	if n := len(g.marks); n > 0 && now.at.Sub(g.marks[n-1].at) < growthStep {
		return
	}
	g.marks = append(g.marks, now)
	for now.at.Sub(g.marks[0].at) > growthWindow {
		g.marks = g.marks[1:]
	}
}

// rate is in bytes a second; 0: nothing is written, or it is not known yet.
func (g *growth) rate() float64 {
	if len(g.marks) == 0 {
		return 0
	}
	first, last := g.marks[0], g.marks[len(g.marks)-1]
	took := last.at.Sub(first.at)
	if took < growthLeast || last.end <= first.end {
		return 0
	}
	return float64(last.end-first.end) / took.Seconds()
}
