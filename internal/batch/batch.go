// Package batch gathers rows of the outbox into batches, the unit in which they are delivered.
//
// A batch becomes one block, in one partition of ClickHouse, under one deduplication token: that is what makes its insert
// atomic and repeatable (FACTS C3, C4, C5). The package also holds the words that the ledger, the sink and the pipeline
// share about a batch: what it is, and in which ways writing it can fail.
package batch

import (
	"math"
	"time"
	"unsafe" // for the size of a type

	"github.com/sluicebox/sluicebox/outbox"
)

// Cause is what sealed a batch.
type Cause string

// The causes, in the order in which they are looked at.
const (
	ByPartition Cause = "partition" // the next row belongs to another partition of ClickHouse
	ByColumns   Cause = "columns"   // the next row has other columns: the outbox was altered
	ByBytes     Cause = "bytes"
	ByRows      Cause = "rows"
	ByDelay     Cause = "delay"
	ByDrain     Cause = "drain" // the daemon shuts down, or a backfill is at its end
	ByRecovery  Cause = "recovery"
	ByRequest   Cause = "request" // an operator asked for its rows
)

// Requested says whether an operator asked for the rows: they are not the stream's next ones.
func (b *Batch) Requested() bool { return b.End == outbox.Position{} }

// Oldest is when the first row was committed, in microseconds since 1970, by Postgres's clock; 0: that is not known.
func (b *Batch) Oldest() int64 {
	if len(b.Commits) == 0 {
		return 0
	}
	return b.Commits[0].At
}

// Rejected is a row that ClickHouse can never take. It goes to the quarantine, its neighbours are delivered.
type Rejected struct {
	ID       int64
	Position outbox.Position
	Reason   string
}

// Commit is when some neighbouring rows of a batch were committed.
type Commit struct {
	At   int64 // in microseconds since 1970, by Postgres's clock
	Rows int   // without rejected ones
}

// Batch is a run of rows, contiguous in commit order.
type Batch struct {
	// Rows are what is sent next, under Token, in commit order. They are all of IDs, unless some were found delivered already or the
	// batch is sent in pieces.
	Rows []outbox.Row
	// Rest are rows that are still to be sent after Rows. No token is bound to them.
	Rest []outbox.Row
	// IDs are the rows that settling marks.
	IDs      []int64
	Rejected []Rejected

	Bytes     int             // size of Rows, as [Size] counts
	End       outbox.Position // of the last row, rejected ones included; zero: the rows are not the stream's next ones
	AckLSN    uint64          // may be acknowledged once this batch is settled; 0: no commit ends in it
	Partition int             // YYYYMM of the event times, UTC; 0: there are no Rows
	SealedBy  Cause
	Commits   []Commit // of the stream's rows; none: they came from the table

	room []outbox.Row // what Rows were gathered in, for [Builder.Reuse]

	// What planning adds.
	Began    time.Time // when it was taken up
	Seq      int64
	Token    string
	Deadline time.Time // on ClickHouse's clock; zero: the table has no deadline constraint
	Trace    string    // id of the trace that tells of it; empty: none does

	// What writing adds.
	Ignored []string  // columns of Rows that the table in ClickHouse lacks
	Stored  time.Time // when ClickHouse had confirmed the last of it
}

// Size is what a row counts towards the limit of bytes: the memory that it takes until it is in ClickHouse, which is as a row of a batch, in
// the columns of the client, and in the block that is sent.
func Size(r *outbox.Row) int {
	const (
		row     = int(unsafe.Sizeof(*r) + unsafe.Sizeof(r.ID))
		columns = 64 // of the block, but for texts: numbers, times, and where texts begin and end
		more    = int(unsafe.Sizeof(outbox.Column{}))
		copies  = 3
	)
	texts := len(r.Context) + len(r.TraceContext)
	size := row + columns + len(r.Type) + len(r.Environment) // these two repeat, and are there once
	for _, column := range r.More {
		texts += len(column.Text)
		size += more
	}
	return size + copies*texts
}

// Partition is the ClickHouse partition of an event time: toYYYYMM(t), in UTC.
func Partition(t time.Time) int {
	t = t.UTC()
	return t.Year()*100 + int(t.Month())
}

// Event times, from MinTime up to MaxTime, that a DateTime64(6) column holds in every supported version and that the client encodes exactly.
// Beyond them values wrap without a word (FACTS C11), so such rows are rejected.
//
//nolint:gochecknoglobals // constants of a type that can't be constant
var (
	MinTime = time.Date(1900, 1, 1, 0, 0, 0, 0, time.UTC)
	MaxTime = time.Date(2262, 4, 11, 0, 0, 0, 0, time.UTC)
)

// Reject says why a row can never be delivered; empty: it can.
func Reject(r *outbox.Row) string {
	switch {
	case r.Invalid != "":
		return r.Invalid
	case r.ID < 0:
		return "id is negative; event_log.id holds 0 and up"
	case r.ID == math.MaxInt64:
		return "id is the last that a bigint can be; the ledger keeps ids as ranges, which end before it"
	case r.Time.Before(MinTime) || !r.Time.Before(MaxTime):
		return "event_date_time is outside of 1900-01-01 to 2262-04-10, what ClickHouse's DateTime64(6) can hold"
	case r.MetadataVersion < 0:
		return "metadata_version is negative; event_log.metadata_version holds 0 and up"
	}
	return ""
}
