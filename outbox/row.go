package outbox

import (
	"cmp"
	"fmt"
	"time"
)

// Position is the place of an event in the order of commits: the order in which Postgres made the events visible, and
// in which they are delivered. Positions of one Postgres cluster can be compared; those of two clusters cannot.
type Position struct {
	// CommitLSN is the LSN of the commit record of the event's transaction, in bytes of WAL. 0 comes before every
	// commit.
	CommitLSN uint64
	// Ordinal counts the events of one transaction from 1, in the order they were written. 0 means that the row did
	// not come from the WAL but by backfill, out of a snapshot taken at CommitLSN.
	Ordinal uint32
}

// Compare returns -1 if p comes before q, 0 if they are the same, and +1 if p comes after q.
func (p Position) Compare(q Position) int {
	return cmp.Or(cmp.Compare(p.CommitLSN, q.CommitLSN), cmp.Compare(p.Ordinal, q.Ordinal))
}

// String returns the LSN as Postgres writes it, and the ordinal: 16/B374D848+3.
func (p Position) String() string {
	return fmt.Sprintf("%X/%X+%d", uint32(p.CommitLSN>>32), uint32(p.CommitLSN), p.Ordinal)
}

// Row is an event as it is stored in the outbox once its transaction has committed.
type Row struct {
	ID              int64     // identity of the event, > 0; not in commit order
	Type            string    // event_type, never empty
	Time            time.Time // event_date_time, to the microsecond
	Environment     string    // environment of the writer
	Context         []byte    // event_context: JSON text as jsonb prints it
	MetadataVersion int32     // metadata_version, > 0
	TraceContext    string    // W3C traceparent of the writing request; empty if there was none
	More            []Column  // what else the table has, but for the marks; the same columns in the same order from row to row
	Position        Position  // place in commit order; ordinals count from 1, and 0 means the row came by backfill
	// Invalid says why the row has a value that no Row can hold, such as an infinite time; empty: it has none.
	Invalid string
}

// Column is the value of a column that is not part of every event, such as a tenant.
type Column struct {
	Name string
	Text []byte // as Postgres prints it; nil: null
}
