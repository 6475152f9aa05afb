package pipeline

import (
	"errors"
	"fmt"
	"slices"
	"sync"
	"time"

	"github.com/sluicebox/sluicebox/internal/ledger"
	"github.com/sluicebox/sluicebox/outbox"
)

// weakness is a rule that the stores lack. The model must find out each: else it would prove nothing.
type weakness string

const (
	sound           weakness = ""
	forgetful       weakness = "tokens do nothing"
	noDeadlines     weakness = "deadlines are not enforced"
	partialMarks    weakness = "a settlement may mark fewer rows"
	foreignSnapshot weakness = "the snapshot is not that of the slot's start"
	blindLookUp     weakness = "a look-up finds nothing"
)

// event is a row of the outbox in memory, and what became of it.
type event struct {
	outbox.Row

	end         uint64    // of its transaction
	visible     time.Time // from when on it can be seen (FACTS P1)
	streamed    bool      // the publication had the table
	marked      bool
	quarantined bool
	requested   bool
	stored      int // how often ClickHouse has it
}

// planned is a batch in the ledger.
type planned struct {
	ledger.Unfinished

	rows, rest []outbox.Row
	open       bool
}

// slot is the replication slot. Another one of the same name is another value.
type slot struct {
	confirmed uint64
	before    uint64 // what a restart of Postgres falls back to (FACTS P3)
	lost      bool
	reader    *feed
}

// world is both databases in memory.
type world struct {
	weak    weakness
	mu      sync.Mutex
	began   time.Time
	changed chan struct{} // closed when there is more to stream
	trace   []string
	problem string
	running map[string]*daemon // by name
	later   sync.WaitGroup     // inserts that are on their way

	// Postgres:
	events      []*event // in the order of commits; ids are not
	lsn, xid    uint64
	state       ledger.State
	epoch       int64
	holder      string
	beat        time.Time
	lock        *session
	batches     map[int64]*planned
	publication int
	timeline    int32
	slot        *slot

	// ClickHouse:
	down     time.Time // until then
	poison   map[int64]bool
	tokens   map[string]time.Time
	bound    map[string][]int64 // tokens that the ledger knew, and their rows
	nextName int
}

func newWorld(weak weakness) *world {
	return &world{
		weak: weak, began: time.Now(), changed: make(chan struct{}), lsn: 100, timeline: 1, state: ledger.State{Phase: ledger.PhaseNew},
		running: map[string]*daemon{}, batches: map[int64]*planned{}, poison: map[int64]bool{}, tokens: map[string]time.Time{}, bound: map[string][]int64{},
	}
}

func (w *world) say(format string, args ...any) {
	w.trace = append(w.trace, fmt.Sprintf("%9.3f ", time.Since(w.began).Seconds())+fmt.Sprintf(format, args...))
}

// wrong notes what must never be.
func (w *world) wrong(format string, args ...any) {
	w.say("WRONG: "+format, args...)
	if w.problem == "" {
		w.problem = fmt.Sprintf(format, args...)
	}
}

// month is when the events of a history happened; every third one a month later, so that partitions end batches.
var month = time.Date(2026, 3, 15, 0, 0, 0, 0, time.UTC) //nolint:gochecknoglobals // a constant

// commit commits a transaction of n events.
func (w *world) commit(n int, visibleIn time.Duration, streamed, bad bool) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.lsn += 10
	w.xid++
	at := w.lsn
	w.lsn += 5
	for i := range n {
		id := int64(len(w.events) + 2)
		id ^= 1 // ids are not in the order of commits (FACTS P10)
		e := &event{end: w.lsn, visible: time.Now().Add(visibleIn), streamed: streamed}
		e.Row = outbox.Row{
			ID: id, Type: "t", Time: month, Environment: "e", Context: []byte(`{}`), MetadataVersion: 1,
			Position: outbox.Position{CommitLSN: at, Ordinal: uint32(i + 1)},
		}
		if len(w.events)/5%3 == 2 {
			e.Time = month.AddDate(0, 1, 0)
		}
		if bad && i == 0 {
			w.poison[id] = true
		}
		w.events = append(w.events, e)
	}
	w.say("commit of %d at %d, visible in %s, streamed %t, bad %t", n, at, visibleIn, streamed, bad)
	if !streamed {
		w.publication++
	}
	w.wake()
}

func (w *world) wake() {
	close(w.changed)
	w.changed = make(chan struct{})
}

// event returns a row that there is.
func (w *world) event(id int64) *event {
	i := slices.IndexFunc(w.events, func(e *event) bool { return e.ID == id })
	return w.events[i]
}

// seen says whether a row can be seen by an ordinary statement.
func (e *event) seen() bool { return !time.Now().Before(e.visible) }

// unsettled describes what is still to be delivered; empty: nothing is.
func (w *world) unsettled() string {
	for _, e := range w.events {
		switch {
		case e.stored == 0 && !e.quarantined:
			return fmt.Sprintf("row %d is lost", e.ID)
		case e.quarantined == e.marked:
			return fmt.Sprintf("row %d is in ClickHouse and not settled", e.ID)
		case w.slot == nil || w.slot.lost || w.slot.confirmed < e.end:
			return fmt.Sprintf("row %d is settled and never acknowledged", e.ID)
		}
	}
	if w.state.Phase != ledger.PhaseStream {
		return "the slot is not complete again"
	}
	return ""
}

// endSessions is what a restart of Postgres does to everybody.
func (w *world) endSessions() {
	if w.lock != nil {
		w.lock.ended = true
		w.lock = nil
	}
	if w.slot != nil && w.slot.reader != nil {
		w.slot.reader.fail(errGone)
	}
}

var errGone = errors.New("the connection is gone")
