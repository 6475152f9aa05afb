package audit

import (
	"math"
	"math/bits"
	"time"
)

// minShift makes buckets of 65 536 neighbouring ids: few enough to read one by one when the day of a live system differs, as
// it always does, and so many that the sums of all others cost nothing to send.
const minShift = 16

// extent is where the ids of one side lie.
type extent struct {
	rows        uint64 // an estimate will do
	least, most int64  // ids; meaningless when rows is 0
}

// buckets are how ids are grouped: those with the same id >> shift are together. Both servers shift with the sign.
type buckets struct {
	shift       uint
	least, most int64 // buckets of the outbox; least > most: it is empty
}

// sizeBuckets makes buckets of about 65 536 rows, or of as many ids where ids are dense. Sparse ones (of a generator that puts
// the time into them) would otherwise give each row a group of its own.
func sizeBuckets(pg, ch extent) buckets {
	if pg.rows == 0 && ch.rows == 0 {
		return buckets{shift: minShift, least: 0, most: -1}
	}
	all := pg
	if pg.rows == 0 {
		all = ch
	} else if ch.rows > 0 {
		all = extent{max(pg.rows, ch.rows), min(pg.least, ch.least), max(pg.most, ch.most)}
	}
	span := uint64(all.most) - uint64(all.least) // the difference of signed numbers, as unsigned one: it can't overflow
	wanted := all.rows>>minShift + 1
	b := buckets{shift: uint(max(minShift, bits.Len64(span/wanted))), least: 0, most: -1}
	b.shift = min(b.shift, 62)
	if pg.rows > 0 {
		b.least, b.most = pg.least>>b.shift, pg.most>>b.shift
	}
	return b
}

// ids is the range of a run, both ends included.
func (b buckets) ids(r run) (from, to int64) {
	return r.from << b.shift, r.to<<b.shift + (1<<b.shift - 1)
}

// period is a range of event times: since, and before until. A zero end is open.
type period struct{ since, until time.Time }

// noDay stands for the day of an infinite time.
const noDay = math.MinInt32

const daySeconds = 86_400

func startOf(day int32) time.Time { return time.Unix(int64(day)*daySeconds, 0).UTC() }

// dateOf writes a day as people do.
func dateOf(day int32) string {
	if day == noDay {
		return "infinite"
	}
	return startOf(day).Format(time.DateOnly)
}
