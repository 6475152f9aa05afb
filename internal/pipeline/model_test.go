package pipeline

import (
	"errors"
	"fmt"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"pgregory.net/rapid"

	"github.com/sluicebox/sluicebox/internal/ledger"
)

// This is a model of delivery, around the code that delivers: two daemons run Pipeline.Run itself, with its watcher, its recovery and
// its backfill, on one Postgres and one ClickHouse in memory (model_world_test.go and its neighbours) and on time that is virtual. Only
// the stores are modelled; no rule of the protocol is written here a second time.
//
// rapid draws a history: what is committed and when it becomes visible, and what befalls whom. A fault strikes a daemon at the n'th call
// to a store from then on, before the store does its part or after it: it is killed, or paused while the other one takes over, or the
// call fails, or its reply is lost; a write may land long after it failed, or never. Slots are lost, dropped or moved, the publication
// misses rows, Postgres restarts or is promoted, ClickHouse goes away or refuses a row. The stores watch what no state may show, see
// world.wrong; when all is well again each row must be delivered, settled and acknowledged.
//
// That the model can fail is shown in two ways: by stores that lack one rule which the protocol relies on (weakness), in this test; and
// by changing the protocol, with ../../mutants. That a statement asks for the epoch is for the ledger's own tests to hold: here the lock's
// end and the numbers of batches stop a daemon that was succeeded, too, so that its lack shows too seldom.

// step is one thing that happens.
type step struct {
	after   time.Duration // of the one before
	what    happening
	daemon  string
	fault   fault
	rows    int
	visible time.Duration
	odd     int
}

type happening string

const (
	commits   happening = "commit"
	strikes   happening = "fault"
	slotGoes  happening = "slot"
	restarts  happening = "restart of Postgres"
	goesDown  happening = "ClickHouse is down"
	requested happening = "request"
)

func (s step) String() string {
	return fmt.Sprintf("%s: %s %s %v %d %s %d", s.after, s.what, s.daemon, s.fault, s.rows, s.visible, s.odd)
}

// steps draws one thing that happens. What comes first in a list is what a failure is reduced to.
func steps() *rapid.Generator[step] {
	span := func(t *rapid.T, name string, of ...time.Duration) time.Duration {
		return rapid.SampledFrom(of).Draw(t, name)
	}
	return rapid.Custom(func(t *rapid.T) step {
		return step{
			after: span(t, "after", 10*time.Millisecond, 100*time.Millisecond, time.Second, 3*time.Second, 12*time.Second),
			what: rapid.SampledFrom([]happening{
				commits, commits, commits, commits, strikes, strikes, strikes, strikes, strikes, slotGoes, restarts, goesDown, requested,
			}).Draw(t, "what"),
			daemon: rapid.SampledFrom([]string{"a", "b"}).Draw(t, "daemon"),
			fault: fault{
				at: rapid.IntRange(1, 12).Draw(t, "at"),
				what: rapid.SampledFrom([]trouble{
					killedBefore, killedAfter, pausedBefore, pausedAfter, failsBefore, failsAfter, landsLate, losesRows, landsNever,
				}).Draw(t, "trouble"),
				long: span(t, "long", 200*time.Millisecond, 6*time.Second, 20*time.Second, 29*time.Second, 50*time.Second),
			},
			rows:    rapid.IntRange(1, 7).Draw(t, "rows"),
			visible: span(t, "visible", 0, 0, 0, 500*time.Millisecond, 20*time.Second),
			odd:     rapid.IntRange(0, 11).Draw(t, "odd"),
		}
	})
}

// happen does one step.
func (w *world) happen(s step) {
	if s.what == commits {
		w.commit(s.rows, s.visible, s.odd != 10, s.odd == 11)
		return
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	if s.what != strikes {
		w.say("%s (%d)", s.what, s.odd)
	}
	switch s.what {
	case strikes:
		w.running[s.daemon].fault = s.fault
	case slotGoes:
		w.loseSlot(s.odd % 3)
	case restarts:
		w.endSessions()
		if w.slot != nil {
			w.slot.confirmed = w.slot.before
		}
		if s.odd > 9 {
			w.timeline++
		}
	case goesDown:
		w.down = time.Now().Add(s.fault.long)
	case requested:
		w.events[s.odd%len(w.events)].requested = true
		clear(w.poison) // mended
	case commits:
	}
}

// loseSlot has Postgres invalidate the slot, or somebody drop it, or create it again.
func (w *world) loseSlot(how int) {
	if w.slot == nil {
		return
	}
	if w.slot.reader != nil {
		w.slot.reader.fail(errGone)
	}
	switch how {
	case 0:
		w.slot.lost = true
	case 1:
		w.slot = nil
	case 2:
		w.lsn += 10
		w.slot = &slot{confirmed: w.lsn, before: w.lsn}
	}
}

// finish lets the daemons go on without faults until all is done, and returns what is left.
func (w *world) finish() (left string) {
	w.mu.Lock()
	w.say("no more faults")
	w.down = time.Time{}
	w.mu.Unlock()
	const patience = 20 * time.Minute
	for end := time.Now().Add(patience); time.Now().Before(end); <-time.After(time.Second) {
		w.mu.Lock()
		left = w.unsettled()
		for _, d := range w.running {
			d.fault.at = 0
			if time.Now().Before(d.paused) {
				left = "a daemon is paused"
			}
		}
		problem := w.problem
		w.mu.Unlock()
		if left == "" || problem != "" {
			return ""
		}
	}
	return left + " after " + patience.String()
}

// play makes one history happen, and returns what is wrong with it and how it went.
func play(t *testing.T, weak weakness, history []step) (problem, trace string) {
	t.Helper()
	synctest.Test(t, func(*testing.T) {
		w := newWorld(weak)
		w.commit(5, 0, true, false)
		quit, ended := make(chan struct{}), make(chan error)
		names := []string{"a", "b"}
		for _, name := range names { // before either runs, for they write to the map too
			w.running[name] = &daemon{w: w, name: name}
		}
		for _, name := range names {
			go (&daemon{w: w, name: name}).supervise(quit, ended)
		}
		for _, s := range history {
			<-time.After(s.after)
			w.happen(s)
		}
		left := w.finish()
		close(quit)
		var err error
		for range 2 {
			if e := <-ended; !errors.Is(e, ledger.ErrFenced) { // it may hear of its successor only now
				err = errors.Join(err, e)
			}
		}
		w.later.Wait()
		switch {
		case w.problem != "":
			problem = w.problem
		case left != "":
			problem = left
		case err != nil:
			problem = "a daemon that is asked to stop fails: " + err.Error()
		}
		trace = strings.Join(w.trace, "\n")
	})
	return problem, trace
}

func TestModel(t *testing.T) {
	t.Parallel()
	histories := rapid.SliceOfN(steps(), 3, 40)
	t.Run("no row is lost, doubled, settled before it is stored or acknowledged before it is settled", func(t *testing.T) {
		t.Parallel()
		told := false
		rapid.Check(t, func(r *rapid.T) {
			for range 10 { // rapid makes a hundred of these
				problem, trace := play(t, sound, histories.Draw(r, "history"))
				if problem == "" {
					continue
				}
				if !told { // a history need not go the same way again: waits have jitter, and select has no order
					told = true
					t.Logf("%s\n%s", trace, problem)
				}
				r.Fatal(problem)
			}
		})
	})
	for _, weak := range []weakness{forgetful, noDeadlines, partialMarks, foreignSnapshot, blindLookUp} {
		t.Run("it is found out that "+string(weak), func(t *testing.T) {
			t.Parallel()
			const enough = 5000
			for seed := range enough {
				if problem, _ := play(t, weak, histories.Example(seed)); strings.HasPrefix(problem, "row") {
					t.Logf("after %d histories: %s", seed+1, problem)
					return
				}
			}
			t.Errorf("nothing is wrong with %d histories", enough)
		})
	}
}
