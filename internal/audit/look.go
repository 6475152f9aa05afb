package audit

import (
	"context"
	"time"
)

const (
	// lookSize is how many ids one look is for: their list stays far below ClickHouse's max_query_size of 256 KiB.
	lookSize = 4096
	// youngAge is the age below which a difference is looked at again.
	youngAge = time.Minute
	// trimSlack is how far the clocks of the two databases may be apart, and ingestion from the mark, before a row that the
	// retention removed is called unknown.
	trimSlack = time.Hour
	// rounds is how often what is young is looked at again. Each wait is twice the one before.
	rounds = 5
)

func trimCut(trimmed time.Time) time.Time {
	if trimmed.IsZero() {
		return trimmed
	}
	return trimmed.Add(trimSlack)
}

// finding is a verdict on an id.
type finding struct {
	id    int64
	day   int32
	kind  Kind // or one of these:
	rows  uint64
	young bool // may still change
}

// What is no difference.
const (
	fine     Kind = ""
	inFlight Kind = "in flight"
	expired  Kind = "expired"
	settling Kind = "settling" // between two looks it became processed
)

// look asks both sides about ids, and records what they say. It returns the ids on which the verdict is not to be believed yet;
// final: there are none.
func (a *Audit) look(ctx context.Context, ids []int64, final bool) (again []int64, err error) {
	for len(ids) > 0 {
		some := ids[:min(lookSize, len(ids))]
		ids = ids[len(some):]
		before, _, err := a.pg.find(ctx, some)
		if err != nil {
			return nil, err
		}
		rows, err := a.ch.find(ctx, some)
		if err != nil {
			return nil, err
		}
		after, trimmed, err := a.pg.find(ctx, some)
		if err != nil {
			return nil, err
		}
		for _, id := range some {
			f := judge(before[id], rows[id], after[id], trimCut(trimmed))
			f.id = id
			if f.young && !final {
				again = append(again, id)
				continue
			}
			if a.report.Repair != nil && f.kind == fine && rows[id].rows > 0 { // it was missing before
				day := a.day(after[id].day)
				day.ClickHouse += rows[id].rows
				day.sumClickHouse += rows[id].hash
				a.report.ClickHouse += rows[id].rows
			}
			a.record(f)
		}
	}
	return again, nil
}

// lookAgain gives young differences time. Each round records what has become certain.
func (a *Audit) lookAgain(ctx context.Context, ids []int64) error {
	wait := a.config.Patience / (1<<rounds - 1)
	for round := 1; len(ids) > 0; round++ {
		a.progress(StepAgain, float64(round-1)/rounds)
		if err := pause(ctx, wait); err != nil {
			return err
		}
		var err error
		if ids, err = a.look(ctx, ids, round == rounds); err != nil {
			return err
		}
		wait *= 2
	}
	return nil
}

// judge says what three looks at an id mean: Postgres, then ClickHouse, then Postgres again.
func judge(before inPostgres, ch inClickHouse, after inPostgres, cut time.Time) finding {
	f := finding{day: ch.day, rows: ch.rows, young: ch.young}
	switch {
	case after.found:
		f.day = after.day
	case before.found:
		f.day = before.day
	}
	switch {
	case ch.rows == 0 && before.processed:
		f.kind, f.young = Missing, before.young
	case ch.rows == 0 && after.processed:
		f.kind, f.young = settling, true
	case ch.rows == 0: // waits to be delivered; or neither side has it any more
		return finding{}
	case !after.found && after.planned: // delivered, but a synchronous standby holds its commit back
		f.kind, f.young = inFlight, false
	case !after.found && ch.ingested.Before(cut):
		f.kind, f.young = expired, false
	case !after.found:
		f.kind = Unknown
	case ch.rows > 1:
		f.kind, f.young = Duplicated, false
	case ch.hash != after.hash:
		f.kind, f.young = Different, false
	case after.processed:
		return finding{}
	case after.planned:
		f.kind, f.young = inFlight, false
	default:
		f.kind = Unmarked
	}
	return f
}

func (a *Audit) record(f finding) {
	switch f.kind {
	case fine, settling:
	case inFlight:
		a.report.InFlight++
	case expired:
		a.expired(f.day, f.rows)
	default:
		found := a.report.Differences[f.kind]
		found.Count++
		a.day(f.day).Differences[f.kind]++
		if len(found.Events) < maxListed {
			event := Event{ID: f.id, Date: dateOf(f.day)}
			if f.kind == Duplicated {
				event.Rows = f.rows
			}
			found.Events = append(found.Events, event)
		}
		if f.kind == Missing && len(a.missing) < maxRepair {
			a.missing = append(a.missing, missing{f.id, f.day})
		}
	}
}

func pause(ctx context.Context, d time.Duration) error {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-timer.C:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}
