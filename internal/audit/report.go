package audit

import (
	"cmp"
	"slices"
	"time"
)

// Kind is a way in which an event differs.
type Kind string

// The kinds, in the order in which they are shown.
const (
	Missing    Kind = "missing"    // processed in Postgres, not in ClickHouse
	Duplicated Kind = "duplicated" // more than once in ClickHouse
	Unmarked   Kind = "unmarked"   // in ClickHouse; not processed in Postgres, and in no planned batch
	Unknown    Kind = "unknown"    // in ClickHouse, not in Postgres
	Different  Kind = "different"  // in both, with other content
)

// Kinds lists all of them.
func Kinds() []Kind { return []Kind{Missing, Duplicated, Unmarked, Unknown, Different} }

// maxListed is how many events of a kind are named. All are counted.
const maxListed = 1000

// Report is what an audit found. Its JSON is for scripts.
type Report struct {
	Result string     `json:"result"` // same or differs
	Slot   string     `json:"slot"`
	Since  *time.Time `json:"since,omitempty"`
	Until  *time.Time `json:"until,omitempty"`

	BeganAt time.Time `json:"began_at"`
	Seconds float64   `json:"seconds"`

	Postgres    uint64 `json:"events_in_postgres"` // processed ones
	ClickHouse  uint64 `json:"rows_in_clickhouse"`
	Waiting     uint64 `json:"waiting"`     // not processed yet
	InFlight    uint64 `json:"in_flight"`   // of those that were looked at: in ClickHouse, and their batch is not settled yet
	Quarantined uint64 `json:"quarantined"` // not processed, and in the quarantine
	Expired     uint64 `json:"expired"`     // in ClickHouse; the retention has removed them from Postgres

	Differences map[Kind]*Finding `json:"differences"`
	Days        []*Day            `json:"days"`
	NotCompared []string          `json:"not_compared,omitempty"` // columns, with the reason
	Repair      *Repair           `json:"repair,omitempty"`
}

// Finding is the events that differ in one way.
type Finding struct {
	Count  uint64  `json:"count"`
	Events []Event `json:"events"` // at most 1000, by id
}

// Event is one that differs.
type Event struct {
	ID   int64  `json:"id"`
	Date string `json:"date"`           // UTC
	Rows uint64 `json:"rows,omitempty"` // in ClickHouse, when it is duplicated
}

// Day is the events of one day, UTC. Its counts were read while events were delivered: those of a live day may differ a little
// although no event does.
type Day struct {
	Date        string          `json:"date"`
	Postgres    uint64          `json:"events_in_postgres"`
	ClickHouse  uint64          `json:"rows_in_clickhouse"`
	Expired     uint64          `json:"expired,omitempty"`
	Differences map[Kind]uint64 `json:"differences,omitempty"`
	Checksum    Checksums       `json:"checksum"`

	number                     int32
	sumPostgres, sumClickHouse uint64
}

// Differs says whether any event of the day does.
func (d *Day) Differs() bool {
	for _, n := range d.Differences {
		if n > 0 {
			return true
		}
	}
	return false
}

// Checksums are sums of the hashes of events, modulo 2⁶⁴, in hexadecimal.
type Checksums struct {
	Postgres   string `json:"postgres"`
	ClickHouse string `json:"clickhouse"`
}

// Repair is what became of a request to deliver what is missing.
type Repair struct {
	Requested uint64 `json:"requested"`         // events
	Restored  uint64 `json:"restored"`          // of them, in ClickHouse at the end
	Left      uint64 `json:"left,omitempty"`    // missing events beyond what one repair asks for
	Stopped   string `json:"stopped,omitempty"` // why the requests were not waited for to their end; empty: they were
}

func newReport(config Config, began time.Time, notCompared []string) *Report {
	r := &Report{Slot: config.Slot, BeganAt: began.UTC(), Differences: map[Kind]*Finding{}, NotCompared: notCompared}
	for _, kind := range Kinds() {
		r.Differences[kind] = &Finding{Events: []Event{}}
	}
	if !config.Since.IsZero() {
		r.Since = &config.Since
	}
	if !config.Until.IsZero() {
		r.Until = &config.Until
	}
	return r
}

// Same says whether no event differs.
func (r *Report) Same() bool {
	for _, finding := range r.Differences {
		if finding.Count > 0 {
			return false
		}
	}
	return true
}

// finish draws the conclusion after a step that took so long.
func (r *Report) finish(took time.Duration) {
	r.Seconds += took.Seconds()
	r.Result = "differs"
	if r.Same() {
		r.Result = "same"
	}
	for _, finding := range r.Differences {
		slices.SortFunc(finding.Events, func(a, b Event) int { return cmp.Compare(a.ID, b.ID) })
	}
}
