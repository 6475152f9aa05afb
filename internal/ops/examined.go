package ops

import (
	"context"
	"maps"
	"sync"
	"time"

	"github.com/rs/zerolog"

	"github.com/sluicebox/sluicebox/internal/doctor"
)

const (
	// examineInterval is how often a doctor looks. What it looks at is changed by people.
	examineInterval = 5 * time.Minute
	// examineSoon is how long it waits instead while a database does not answer, or the daemon has not begun.
	examineSoon = 15 * time.Second
)

// Examine has a doctor look again and again, beside delivery, until ctx is done. The page shows what is not well. What the daemon does not
// say by itself is logged, once until it is mended.
func (m *Metrics) Examine(ctx context.Context, look func(context.Context) *doctor.Report, log zerolog.Logger) {
	said := map[string]bool{}
	for ctx.Err() == nil {
		wait := examineInterval
		m.mu.Lock()
		began := m.began
		m.mu.Unlock()
		report := look(ctx)
		switch {
		case ctx.Err() != nil:
			return
		case report.Reached():
			unwell := map[string]bool{}
			for _, f := range report.Unwell() {
				unwell[f.Check] = true
				if !f.Told() && !said[f.Check] {
					log.Warn().Str("check", f.Check).Str("seen", f.Seen).Str("wanted", f.Wanted).Str("mend", f.Mend).Msg("not as it should be")
				}
			}
			said = unwell
			m.examined.set(report, began)
		}
		if !report.Reached() || !began {
			wait = examineSoon
		}
		select {
		case <-time.After(wait):
		case <-ctx.Done():
		}
	}
}

// examined is what a doctor found when both databases last answered it.
type examined struct {
	mu   sync.Mutex
	last examination
}

// examination is one such look.
type examination struct {
	at     time.Time // zero: there was none
	unwell []doctor.Finding
	counts map[doctor.Result]int // of those that are shown
	hidden int                   // what a daemon that has not begun tells by itself
}

// failed is the number of checks that failed, of those shown.
func (e *examination) failed() (n int) {
	for i := range e.unwell {
		if e.unwell[i].Result == doctor.Fail {
			n++
		}
	}
	return n
}

// set keeps a report. Of a daemon that has not begun, what it tells by itself may not be true yet: its slot is missing, say.
func (e *examined) set(report *doctor.Report, began bool) {
	last := examination{at: time.Now(), counts: maps.Clone(report.Counts)}
	for _, f := range report.Unwell() {
		if began || !f.Told() {
			last.unwell = append(last.unwell, f)
		} else {
			last.counts[f.Result]--
			last.hidden++
		}
	}
	e.mu.Lock()
	defer e.mu.Unlock()
	e.last = last
}

func (e *examined) read() examination {
	e.mu.Lock()
	defer e.mu.Unlock()
	return e.last
}
