package batch

import (
	"slices"
	"time"

	"github.com/sluicebox/sluicebox/outbox"
)

// Limits say when a batch is sealed: whichever is reached first.
type Limits struct {
	Rows  int           // 1 to 1 000 000: ClickHouse cuts blocks at 1 048 449 rows, and a cut block is not atomic (FACTS C4)
	Bytes int           // at most 128 MiB: ClickHouse cuts blocks at 256 MB
	Delay time.Duration // age of the oldest row
}

// Builder gathers rows into the next batch. The zero value is not usable; see [NewBuilder].
type Builder struct {
	limits Limits
	next   Batch
	spare  []outbox.Row // room for the rows of the next batch
	since  time.Time
}

// NewBuilder makes an empty builder.
func NewBuilder(limits Limits) *Builder {
	return &Builder{limits: limits}
}

// Len is the number of rows gathered, rejected ones included.
func (b *Builder) Len() int { return len(b.next.Rows) + len(b.next.Rejected) }

// Due is when the batch must be sealed by age. Only meaningful while Len is not 0.
func (b *Builder) Due() time.Time { return b.since.Add(b.limits.Delay) }

// Before says whether the batch must be sealed before a row is added, and why; empty: it need not.
func (b *Builder) Before(r *outbox.Row) Cause {
	if len(b.next.Rows) == 0 || Reject(r) != "" {
		return ""
	}
	if Partition(r.Time) != b.next.Partition {
		return ByPartition
	}
	if !sameColumns(r, &b.next.Rows[0]) {
		return ByColumns
	}
	if b.next.Bytes+Size(r) > b.limits.Bytes {
		return ByBytes
	}
	return ""
}

// Add adds a row; the caller has sealed the batch if [Builder.Before] asked for it. A row that is larger than the limit of
// bytes gets a batch of its own.
func (b *Builder) Add(r *outbox.Row) {
	if b.Len() == 0 {
		b.since = time.Now()
	}
	b.next.End = r.Position
	if reason := Reject(r); reason != "" {
		b.next.Rejected = append(b.next.Rejected, Rejected{ID: r.ID, Position: r.Position, Reason: reason})
		return
	}
	if len(b.next.Rows) == 0 {
		b.next.Partition = Partition(r.Time)
	}
	b.grow()
	b.next.Rows = append(b.next.Rows, *r)
	b.next.IDs = append(b.next.IDs, r.ID)
	b.next.Bytes += Size(r)
}

// grow makes room for one more row. Once a batch seems to become a large one, it gets its whole room at once: what append leaves behind
// while it grows by quarters is four times that.
func (b *Builder) grow() {
	const large = 1024
	n := len(b.next.Rows)
	switch {
	case n < cap(b.next.Rows):
	case cap(b.spare) > n:
		b.next.Rows, b.spare = append(b.spare, b.next.Rows...), nil
	case n >= large:
		want := n * b.limits.Bytes / b.next.Bytes // if the rows to come are like these
		b.next.Rows = slices.Grow(b.next.Rows, max(min(want+want/16, b.limits.Rows)-n, 1))
	}
}

// AddCommitted is Add for a row of the stream, which was committed at a time, in microseconds since 1970.
func (b *Builder) AddCommitted(r *outbox.Row, at int64) {
	const same = 1000 // commits of one millisecond are told as one, so that there are few however small the transactions
	before := len(b.next.IDs)
	b.Add(r)
	rows := len(b.next.IDs) - before
	if n := len(b.next.Commits) - 1; n >= 0 && at-b.next.Commits[n].At < same && at >= b.next.Commits[n].At {
		b.next.Commits[n].Rows += rows
		return
	}
	b.next.Commits = append(b.next.Commits, Commit{At: at, Rows: rows})
}

// Oldest is when the first row that was gathered was committed, in microseconds since 1970; 0: that is not known.
func (b *Builder) Oldest() int64 { return b.next.Oldest() }

// Full says whether the batch must be sealed now, and why; empty: it need not.
func (b *Builder) Full() Cause {
	switch {
	case b.Len() >= b.limits.Rows:
		return ByRows
	case b.next.Bytes >= b.limits.Bytes:
		return ByBytes
	}
	return ""
}

// Commit notes that all rows of a transaction are in this batch or an earlier one: lsn may be acknowledged once this one is
// settled.
func (b *Builder) Commit(lsn uint64) { b.next.AckLSN = lsn }

// Seal returns what was gathered and starts anew.
func (b *Builder) Seal(cause Cause) *Batch {
	sealed := b.next
	sealed.SealedBy, sealed.room = cause, sealed.Rows
	b.next = Batch{IDs: make([]int64, 0, min(len(sealed.IDs), b.limits.Rows))}
	return &sealed
}

// Reuse takes back the room of a batch's rows, which nothing may refer to any more. Without it each batch leaves half its size to the
// garbage collector.
func (b *Builder) Reuse(sealed *Batch) {
	if cap(sealed.room) > cap(b.spare) {
		clear(sealed.room) // what the rows refer to is free now
		b.spare = sealed.room[:0]
	}
	sealed.Rows, sealed.Rest, sealed.room = nil, nil, nil
}

// sameColumns says whether two rows have the same columns. Those of one batch have.
func sameColumns(a, b *outbox.Row) bool {
	return slices.EqualFunc(a.More, b.More, func(x, y outbox.Column) bool { return x.Name == y.Name })
}
