package batch

import (
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/sluicebox/sluicebox/outbox"
)

var day = time.Date(2026, 3, 14, 15, 9, 26, 535897000, time.UTC) //nolint:gochecknoglobals // a constant

func row(id int64, at time.Time, context string) *outbox.Row {
	return &outbox.Row{
		ID: id, Type: "t", Time: at, Environment: "e", Context: []byte(context), MetadataVersion: 1,
		Position: outbox.Position{CommitLSN: uint64(1000 + id), Ordinal: 1},
	}
}

// gather feeds rows as the pipeline does and returns the ids of each sealed batch with what sealed it.
func gather(limits Limits, rows ...*outbox.Row) (sealed []string, rest *Builder) {
	b := NewBuilder(limits)
	seal := func(cause Cause) {
		batch := b.Seal(cause)
		ids := make([]string, 0, len(batch.IDs))
		for _, id := range batch.IDs {
			ids = append(ids, string(rune('a'+id)))
		}
		sealed = append(sealed, strings.Join(ids, "")+" by "+string(cause))
	}
	for _, r := range rows {
		if cause := b.Before(r); cause != "" {
			seal(cause)
		}
		b.Add(r)
		if cause := b.Full(); cause != "" {
			seal(cause)
		}
	}
	return sealed, b
}

func TestBuilder(t *testing.T) {
	t.Parallel()
	wide := Limits{Rows: 100, Bytes: 1 << 20, Delay: time.Second}
	size := Size(row(0, day, "xx"))

	t.Run("seals at the limit of rows", func(t *testing.T) {
		t.Parallel()
		sealed, rest := gather(Limits{Rows: 2, Bytes: 1 << 20}, row(0, day, ""), row(1, day, ""), row(2, day, ""))
		if diff := cmp.Diff([]string{"ab by rows"}, sealed); diff != "" || rest.Len() != 1 {
			t.Errorf("sealed, %d left: %s", rest.Len(), diff)
		}
	})
	t.Run("seals before the row that would pass the limit of bytes", func(t *testing.T) {
		t.Parallel()
		sealed, rest := gather(Limits{Rows: 100, Bytes: 2*size + 1}, row(0, day, "xx"), row(1, day, "xx"), row(2, day, "xx"))
		if diff := cmp.Diff([]string{"ab by bytes"}, sealed); diff != "" || rest.Len() != 1 {
			t.Errorf("sealed, %d left: %s", rest.Len(), diff)
		}
	})
	t.Run("gives a row larger than the limit a batch of its own", func(t *testing.T) {
		t.Parallel()
		sealed, _ := gather(Limits{Rows: 100, Bytes: 2 * size}, row(0, day, "xx"), row(1, day, strings.Repeat("x", 1000)), row(2, day, "xx"))
		if diff := cmp.Diff([]string{"a by bytes", "b by bytes"}, sealed); diff != "" {
			t.Error(diff)
		}
	})
	t.Run("seals before a row of another month, in UTC", func(t *testing.T) {
		t.Parallel()
		east := time.FixedZone("east", 2*60*60)
		sealed, _ := gather(wide,
			row(0, time.Date(2026, 3, 31, 23, 59, 59, 0, time.UTC), ""),
			row(1, time.Date(2026, 4, 1, 1, 0, 0, 0, east), ""), // still March in UTC
			row(2, time.Date(2026, 4, 1, 0, 0, 0, 0, time.UTC), ""))
		if diff := cmp.Diff([]string{"ab by partition"}, sealed); diff != "" {
			t.Error(diff)
		}
	})
	t.Run("a row that can't be delivered is set aside and moves the position", func(t *testing.T) {
		t.Parallel()
		bad := row(1, day, "")
		bad.Invalid = "because"
		_, b := gather(wide, row(0, day, ""), bad)
		batch := b.Seal(ByDelay)
		want := []Rejected{{ID: 1, Position: bad.Position, Reason: "because"}}
		if diff := cmp.Diff(want, batch.Rejected); diff != "" || batch.End != bad.Position || len(batch.Rows) != 1 {
			t.Errorf("end %s, %d rows: %s", batch.End, len(batch.Rows), diff)
		}
	})
	t.Run("rows of commits within a millisecond are told together, rejected ones not at all", func(t *testing.T) {
		t.Parallel()
		b := NewBuilder(wide)
		bad := row(3, day, "")
		bad.Invalid = "because"
		b.AddCommitted(row(0, day, ""), 5000)
		b.AddCommitted(row(1, day, ""), 5999)
		b.AddCommitted(row(2, day, ""), 6000)
		b.AddCommitted(bad, 6001)
		b.AddCommitted(row(4, day, ""), 5000) // in the order of commits, whose times may go back
		if got := b.Oldest(); got != 5000 {
			t.Errorf("the oldest was committed at %d, want 5000", got)
		}
		if diff := cmp.Diff([]Commit{{5000, 2}, {6000, 1}, {5000, 1}}, b.Seal(ByDelay).Commits); diff != "" {
			t.Error(diff)
		}
		if got := b.Oldest(); got != 0 {
			t.Errorf("nothing is gathered, and the oldest was committed at %d", got)
		}
	})
	t.Run("a commit in the middle is what may be acknowledged", func(t *testing.T) {
		t.Parallel()
		b := NewBuilder(wide)
		b.Add(row(0, day, ""))
		b.Commit(4711)
		b.Add(row(1, day, "")) // of the next transaction, whose commit is not here yet
		if got := b.Seal(ByDelay).AckLSN; got != 4711 {
			t.Errorf("AckLSN = %d, want 4711", got)
		}
		if got := b.Seal(ByDelay).AckLSN; got != 0 {
			t.Errorf("AckLSN of the next batch = %d, want 0", got)
		}
	})
}

func TestReject(t *testing.T) {
	t.Parallel()
	with := func(change func(*outbox.Row)) *outbox.Row {
		r := row(1, day, "{}")
		change(r)
		return r
	}
	for name, c := range map[string]struct {
		row *outbox.Row
		bad bool
	}{
		"an ordinary row":      {with(func(*outbox.Row) {}), false},
		"the first instant":    {with(func(r *outbox.Row) { r.Time = time.Date(1900, 1, 1, 0, 0, 0, 0, time.UTC) }), false},
		"one before the first": {with(func(r *outbox.Row) { r.Time = time.Date(1899, 12, 31, 23, 59, 59, 999999000, time.UTC) }), true},
		"the last instant":     {with(func(r *outbox.Row) { r.Time = time.Date(2262, 4, 10, 23, 59, 59, 999999000, time.UTC) }), false},
		"one after the last":   {with(func(r *outbox.Row) { r.Time = time.Date(2262, 4, 11, 0, 0, 0, 0, time.UTC) }), true},
		"a negative id":        {with(func(r *outbox.Row) { r.ID = -1 }), true},
		"a negative version":   {with(func(r *outbox.Row) { r.MetadataVersion = -1 }), true},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			if reason := Reject(c.row); (reason != "") != c.bad {
				t.Errorf("reject gave %q", reason)
			}
		})
	}
}

// TestReuse gathers batches of many sizes, each while the one before it is still in use, in the room of earlier ones.
func TestReuse(t *testing.T) {
	t.Parallel()
	b := NewBuilder(Limits{Rows: 5000, Bytes: 1 << 20, Delay: time.Hour})
	var before *Batch
	rooms := map[*outbox.Row]bool{}
	id := int64(0)
	done := func(sealed *Batch) {
		for i := range sealed.Rows {
			if diff := cmp.Diff(row(sealed.IDs[i], day, strconv.FormatInt(sealed.IDs[i], 10)), &sealed.Rows[i]); diff != "" {
				t.Fatalf("row %d of a batch of %d: %s", i, len(sealed.Rows), diff)
			}
		}
		b.Reuse(sealed)
		if sealed.Rows != nil {
			t.Fatal("a batch keeps rows whose room was taken back")
		}
	}
	for _, size := range []int{2500, 3000, 10, 1500, 1, 2000, 2999, 1024, 2500} {
		for range size {
			b.Add(row(id, day, strconv.FormatInt(id, 10)))
			id++
		}
		sealed := b.Seal(ByDelay)
		if len(sealed.Rows) != size || len(sealed.IDs) != size {
			t.Fatalf("%d rows and %d ids of %d", len(sealed.Rows), len(sealed.IDs), size)
		}
		if size > 1024 {
			rooms[&sealed.Rows[0]] = true
		}
		if before != nil {
			done(before)
		}
		before = sealed
	}
	done(before)
	if len(rooms) > 2 {
		t.Errorf("large batches lay in %d rooms, want 2 in turns", len(rooms))
	}
}
