package pipeline

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/sluicebox/sluicebox/internal/batch"
	"github.com/sluicebox/sluicebox/internal/failpoint"
	"github.com/sluicebox/sluicebox/outbox"
)

// writing is the way of one planned batch into ClickHouse: it ends when each of its rows is surely stored, or put aside.
//
// A success of the first attempt under a token is all that is needed. Once an attempt has failed, or was another daemon's, its outcome
// is unknown, and tokens alone don't settle it (the server may have died between noting the token and storing the rows, or the table
// was replaced). So the rows are looked up before each further attempt and after its success, and are sent again under the same token as
// long as they are the same.
//
// When ClickHouse refuses the content, the rows at fault are found by halving: each half is planned anew, under a token of its own.
// That must wait until no earlier attempt can land any more.
type writing struct {
	p *Pipeline
	b *batch.Batch

	look    bool      // rows must be looked up before they are sent: an attempt under this token may have stored them
	careful bool      // the same for each further piece, since they came from elsewhere
	until   time.Time // on ClickHouse's clock: an attempt under this token may land until then; zero: none was made
	renewed bool      // the token was given up once because its rows were absent
	wait    *pacer

	sizes    []int            // of the pieces that b.Rest is to be sent in, first one first; what is left then is one more
	suspects []batch.Rejected // rows that ClickHouse refuses even alone; they stay in b.Rest, at its end, until all others are stored
	stored   int              // rows that ClickHouse took
	strange  time.Time        // since when ClickHouse answers with codes that are in no list; zero: it does not
}

func (w *writing) run(ctx context.Context) error {
	defer w.p.release(w.wait)
	for {
		if len(w.b.Rows) == 0 {
			if more, err := w.next(ctx); err != nil || !more {
				return err
			}
		}
		if w.look {
			if err := w.keepMissing(ctx); err != nil {
				return err
			}
			if len(w.b.Rows) == 0 {
				continue
			}
		}
		if err := w.attempt(ctx); err != nil {
			return err
		}
	}
}

// attempt sends the rows once, and deals with the outcome. Its error ends the session.
func (w *writing) attempt(ctx context.Context) error {
	began := time.Now()
	err := w.p.sink.Write(ctx, w.b)
	w.p.observer.Attempt(classOf(err), time.Since(began))
	if err == nil {
		w.p.columns(w.b)
		return w.succeeded(ctx)
	}
	if ctx.Err() != nil {
		return context.Cause(ctx)
	}
	var failure *batch.Failure
	w.look = true
	switch {
	case errors.As(err, &failure) && failure.Class == batch.Data:
		return w.isolate(ctx, failure)
	case failure != nil && failure.Class == batch.Unlisted: // an answer, so that nothing is on its way
		if w.strange.IsZero() {
			w.strange = began
		}
		if time.Since(w.strange) > strangeFor {
			return w.isolate(ctx, failure)
		}
	default:
		w.strange = time.Time{}
		if err := w.mayLand(ctx); err != nil {
			return err
		}
	}
	return w.pause(ctx, err, "ClickHouse does not take a batch; it is sent again")
}

// strangeFor is for how long ClickHouse must answer with codes that are in no list, until their cause is looked for in the content.
const strangeFor = 30 * time.Second

// mayLand notes that the outcome of an attempt under the token is unknown.
func (w *writing) mayLand(ctx context.Context) error {
	var err error
	if w.until, err = w.p.lands(ctx, w.b.Deadline); err != nil {
		return err
	}
	if w.until.After(w.p.late) {
		w.p.late = w.until
	}
	w.p.since = 0
	return nil
}

func (w *writing) pause(ctx context.Context, err error, message string) error {
	w.p.hold(w.wait)
	w.p.pause(err, message)
	if !sleep(ctx, w.wait.NextBackOff()) {
		return context.Cause(ctx)
	}
	return nil
}

// succeeded looks whether the rows are there, unless this was the only attempt under the token.
func (w *writing) succeeded(ctx context.Context) error {
	if w.look {
		stored, err := w.p.there(ctx, w.b)
		if err != nil {
			return err
		}
		if !stored {
			return w.renew(ctx)
		}
	}
	w.stored += len(w.b.Rows)
	w.p.since++
	w.b.Rows, w.until = nil, time.Time{}
	return nil
}

// renew gives up a token: a success left rows missing. Either ClickHouse knew the token and had not the rows, and then the token must not
// be used again; or the look-up can't see what is there, and then sending once more would double it.
func (w *writing) renew(ctx context.Context) error {
	sees, err := w.p.sees(ctx)
	if err != nil {
		return err
	}
	if w.renewed || !sees {
		return &HaltError{
			Reason: "ClickHouse confirms inserts whose rows can't be found in the table afterwards",
			Hint:   "is there a row policy, a TTL, or a Distributed, Buffer or Null engine between the daemon and the rows? mend it, then start again",
		}
	}
	w.b.Token, w.renewed = "", true
	return nil
}

// keepMissing keeps the rows that ClickHouse does not have, and plans them anew under a later deadline. The token stays if the
// rows do.
func (w *writing) keepMissing(ctx context.Context) error {
	// Counted from before the look-up. What lands after it is noted later than that, and so ClickHouse remembers the token until
	// the deadline, however long this daemon is paused before it sends the rows again.
	_, deadline, err := w.p.clock(ctx)
	if err != nil {
		return err
	}
	missing, err := w.p.missing(ctx, w.b)
	if err != nil {
		return err
	}
	if len(missing) == len(w.b.Rows) && w.until.IsZero() && w.b.Token != "" {
		w.look = false // as planned, and never sent
		return nil
	}
	if len(missing) < len(w.b.Rows) {
		w.b.Token = ""
		w.stored += len(w.b.Rows) - len(missing)
		w.p.observer.Found(len(w.b.Rows) - len(missing))
	}
	w.b.Rows = missing
	if len(missing) == 0 {
		w.until = time.Time{}
		return nil
	}
	w.b.Deadline = deadline
	return w.replan(ctx)
}

// replan stores the batch as it is now.
func (w *writing) replan(ctx context.Context) error {
	if err := w.p.ledger.Replan(ctx, w.b); err != nil {
		return err
	}
	failpoint.Hit("replanned")
	return nil
}

// bind gives the rows a token of their own. Nothing can have been stored under it.
func (w *writing) bind(ctx context.Context) (err error) {
	w.b.Token, w.look, w.until = "", w.careful, time.Time{}
	if _, w.b.Deadline, err = w.p.clock(ctx); err != nil {
		return err
	}
	return w.replan(ctx)
}

// quiet waits until no attempt that was made can land any more, so that its token may be given up.
func (w *writing) quiet(ctx context.Context) error {
	if !w.until.IsZero() {
		w.p.hold(w.wait)
	}
	err := w.p.outlive(ctx, w.until)
	w.until = time.Time{}
	return err
}

// lands is until when, on ClickHouse's clock, an insert with a deadline may land. Nothing enforces it if the table has no such constraint.
func (p *Pipeline) lands(ctx context.Context, deadline time.Time) (time.Time, error) {
	const noDeadline = 5 * time.Minute
	if !deadline.IsZero() {
		return deadline, nil
	}
	now, _, err := p.clock(ctx)
	return now.Add(noDeadline), err
}

// outlive waits until an insert that is on its way can't land any more: until then, on ClickHouse's clock.
func (p *Pipeline) outlive(ctx context.Context, until time.Time) error {
	fresh := false
	for told := false; !until.IsZero(); told = true {
		const slack = 2 * time.Second // a deadline has whole seconds
		now, _, err := p.clock(ctx)
		if err != nil {
			return err
		}
		left := until.Add(slack).Sub(now)
		if left <= 0 {
			if fresh {
				return nil
			}
			// Its clock may have been set back since it was last asked.
			if err := p.ready(ctx); err != nil {
				return err
			}
			fresh = true
			continue
		}
		const reason = "an insert whose outcome is unknown may still land"
		if !told {
			p.log.Warn().Dur("wait", left).Msg("waiting: " + reason)
		}
		p.observer.State(Paused, reason)
		if !sleep(ctx, min(left, time.Second)) {
			return context.Cause(ctx)
		}
	}
	return nil
}

// keepWindow keeps ClickHouse from forgetting the token of an insert that may still land: it waits before too many others are made. Half
// of the window is for writers other than this daemon.
func (p *Pipeline) keepWindow(ctx context.Context) error {
	if p.late.IsZero() {
		return nil
	}
	var window int
	err := p.again(ctx, "ClickHouse can't be reached", sinkFailed, func() (err error) {
		window, err = p.sink.Window(ctx)
		return err
	})
	if err != nil {
		return err
	}
	now, _, err := p.clock(ctx)
	if err != nil {
		return err
	}
	switch {
	case now.After(p.late):
	case window == 0 || p.since < window/2:
		return nil
	default:
		wait := newBackoff()
		p.hold(wait)
		err := p.outlive(ctx, p.late)
		p.release(wait)
		if err != nil {
			return err
		}
	}
	p.late = time.Time{}
	return nil
}

// isolate makes the rows fewer whose content ClickHouse refuses.
func (w *writing) isolate(ctx context.Context, failure *batch.Failure) error {
	// A view behind the table may have refused what the table itself has stored; and an attempt that was made before may have landed.
	if err := w.quiet(ctx); err != nil {
		return err
	}
	missing, err := w.p.missing(ctx, w.b)
	if err != nil {
		return err
	}
	if len(missing) < len(w.b.Rows) {
		return nil // run plans what is missing
	}
	switch {
	case len(failure.Rejected) > 0:
		w.suspect(failure.Rejected)
	case len(w.b.Rows) == 1:
		row := &w.b.Rows[0]
		w.suspect([]batch.Rejected{{ID: row.ID, Position: row.Position, Reason: fmt.Sprintf("ClickHouse refuses it: %.1000s", failure.Error())}})
	default:
		half := len(w.b.Rows) / 2
		w.sizes = slices.Insert(w.sizes, 0, len(w.b.Rows)-half)
		w.b.Rest = slices.Concat(w.b.Rows[half:], w.b.Rest)
		w.b.Rows = w.b.Rows[:half:half]
	}
	if len(w.suspects) > w.limit() {
		return w.wrongTable(ctx, failure)
	}
	if len(w.b.Rows) == 0 {
		return nil
	}
	return w.bind(ctx)
}

// suspect moves rows to the end of what is still to be sent.
func (w *writing) suspect(rejected []batch.Rejected) {
	w.suspects = append(w.suspects, rejected...)
	refused := setOf(idsOf(rejected))
	good := make([]outbox.Row, 0, len(w.b.Rows))
	for _, row := range w.b.Rows {
		if _, bad := refused[row.ID]; bad {
			w.b.Rest = append(w.b.Rest, row)
		} else {
			good = append(good, row)
		}
	}
	w.b.Rows = good
}

// fewSuspects is how many rows of a batch may always be put into quarantine.
const fewSuspects = 10

// limit is how many rows of the batch may be put into quarantine. If more are refused, it is the table that is wrong.
func (w *writing) limit() int {
	if w.b.Requested() { // an operator has tried, and is told
		return len(w.b.IDs)
	}
	return max(fewSuspects, int(w.p.config.PoisonShare*float64(len(w.b.IDs))))
}

// wrongTable waits for the table to be mended, and begins again with all rows.
func (w *writing) wrongTable(ctx context.Context, failure *batch.Failure) error {
	n := len(w.suspects)
	w.b.Rows = slices.SortedFunc(slices.Values(slices.Concat(w.b.Rows, w.b.Rest)), func(a, b outbox.Row) int {
		return cmp.Or(a.Position.Compare(b.Position), cmp.Compare(a.ID, b.ID))
	})
	w.b.Rest, w.sizes, w.suspects = nil, nil, nil
	w.wait.MaxInterval = 5 * time.Minute // each round costs ClickHouse many inserts
	err := w.pause(ctx, &batch.Failure{
		Class: batch.Data,
		Err: fmt.Errorf("ClickHouse refuses at least %d of a batch's %d events, which is more than may be put into quarantine; the last one because: %w",
			n, len(w.b.IDs), failure),
		Hint: "compare the table in ClickHouse with the events; if these are wrong and not it, raise CDC_POISON_SHARE",
	}, "the stream waits for the table in ClickHouse to be mended")
	if err != nil {
		return err
	}
	return w.bind(ctx)
}

// next takes the next piece, or, when all that ClickHouse takes is stored, puts the others into quarantine. more: there is a piece.
func (w *writing) next(ctx context.Context) (more bool, err error) {
	left := len(w.b.Rest) - len(w.suspects)
	if left > 0 {
		size := left
		if len(w.sizes) > 0 {
			size, w.sizes = min(w.sizes[0], left), w.sizes[1:]
		}
		w.b.Rows, w.b.Rest = w.b.Rest[:size:size], w.b.Rest[size:]
		return true, w.bind(ctx)
	}
	if len(w.suspects) == 0 {
		w.p.refused = 0
		return false, nil
	}
	if w.p.config.HaltOnPoison && !w.b.Requested() {
		return false, poisoned(w.suspects)
	}
	// Batches of few rows never reach their limit. If nothing at all is taken of one after the other, it is the table, too; at once, if
	// ClickHouse does not even say that it is about the content.
	if w.stored > 0 {
		w.p.refused = 0
	}
	tooMany := w.p.config.PoisonShare < 1 && w.p.refused+len(w.suspects) > fewSuspects
	if w.stored == 0 && !w.b.Requested() && (tooMany || !w.strange.IsZero()) {
		last := w.suspects[len(w.suspects)-1]
		return true, w.wrongTable(ctx, &batch.Failure{Class: batch.Data, Err: errors.New(last.Reason)})
	}
	if err := w.giveUp(ctx, w.suspects); err != nil {
		return false, err
	}
	if w.stored == 0 && !w.b.Requested() {
		w.p.refused += len(w.suspects)
	}
	return false, nil
}

// giveUp puts rows of the batch into quarantine.
func (w *writing) giveUp(ctx context.Context, rejected []batch.Rejected) error {
	if err := w.quiet(ctx); err != nil {
		return err
	}
	gone := idsOf(rejected)
	set := setOf(gone)
	w.b.Rest = slices.DeleteFunc(w.b.Rest, func(row outbox.Row) bool { _, is := set[row.ID]; return is })
	w.b.IDs = without(w.b.IDs, gone)
	w.b.Rejected = append(w.b.Rejected, rejected...)
	if err := w.bind(ctx); err != nil {
		return err
	}
	w.p.tellRejected(rejected)
	return nil
}

// withdraw takes rows out of a batch that an earlier daemon planned: those that were deleted since, and those that were made such as
// ClickHouse can't take. What it has of them is delivered; the others are put into quarantine.
func (w *writing) withdraw(ctx context.Context, deleted []batch.Rejected) error {
	reasons := make(map[int64]string, len(deleted))
	var out []outbox.Row // at their positions; their times may have been others
	for _, r := range deleted {
		reasons[r.ID] = r.Reason
		out = append(out, outbox.Row{ID: r.ID, Position: r.Position})
	}
	invalid := func(row outbox.Row) bool {
		reason := batch.Reject(&row)
		if reason != "" {
			reasons[row.ID] = reason
			out = append(out, outbox.Row{ID: row.ID, Position: row.Position})
		}
		return reason != ""
	}
	w.b.Rows, w.b.Rest = slices.DeleteFunc(w.b.Rows, invalid), slices.DeleteFunc(w.b.Rest, invalid)
	if len(out) == 0 {
		return nil
	}
	if err := w.quiet(ctx); err != nil {
		return err
	}
	missing, err := w.p.missing(ctx, &batch.Batch{Rows: out})
	if err != nil {
		return err
	}
	rejected := make([]batch.Rejected, len(missing))
	for i, row := range missing {
		rejected[i] = batch.Rejected{ID: row.ID, Position: row.Position, Reason: reasons[row.ID]}
	}
	w.b.IDs = without(w.b.IDs, idsOf(deleted)) // they can't be marked
	return w.giveUp(ctx, rejected)
}

// sees says whether a look-up finds a row of the newest settled batch, as it must. If there is none, ClickHouse must show that it hides
// nothing.
func (p *Pipeline) sees(ctx context.Context) (bool, error) {
	rows, err := p.ledger.Delivered(ctx, 1, true)
	if err != nil {
		return false, err
	}
	if len(rows) == 0 {
		var all bool
		err := p.again(ctx, "ClickHouse can't be asked which events it has", sinkFailed, func() (err error) {
			all, err = p.sink.SeesAll(ctx)
			return err
		})
		return all, err
	}
	missing, err := p.missing(ctx, &batch.Batch{Rows: rows})
	return len(missing) == 0, err
}

// there says whether every row of a batch is in ClickHouse. It looks several times, since a replica may lag behind.
func (p *Pipeline) there(ctx context.Context, b *batch.Batch) (bool, error) {
	const looks = 6 // three seconds, as the waits grow
	wait := newBackoff()
	for range looks {
		missing, err := p.missing(ctx, b)
		if err != nil || len(missing) == 0 {
			return err == nil, err
		}
		if !sleep(ctx, wait.NextBackOff()) {
			return false, context.Cause(ctx)
		}
	}
	return false, nil
}

// missing returns the rows of the batch that ClickHouse does not have.
func (p *Pipeline) missing(ctx context.Context, b *batch.Batch) ([]outbox.Row, error) {
	var found map[int64]struct{}
	err := p.again(ctx, "ClickHouse can't be asked which events it has", sinkFailed, func() (err error) {
		found, err = p.sink.Find(ctx, b)
		return err
	})
	if err != nil {
		return nil, err
	}
	missing := make([]outbox.Row, 0, len(b.Rows))
	for i := range b.Rows {
		if _, stored := found[b.Rows[i].ID]; !stored {
			missing = append(missing, b.Rows[i])
		}
	}
	return missing, nil
}

// Stored is the outcome of an insert that ClickHouse has confirmed; each other one is the class of its failure.
const Stored = "ok"

// classOf names the outcome of a write.
func classOf(err error) string {
	var failure *batch.Failure
	switch {
	case err == nil:
		return Stored
	case errors.As(err, &failure):
		return string(failure.Class)
	}
	return string(batch.Unknown)
}
