package main

import (
	"context"
	"fmt"
	"math"
	"math/rand/v2"
	"slices"
	"strings"
	"sync"
	"time"
)

// fault is one way to break something. inject breaks it and returns what mends it, which may be nil.
type fault struct {
	name  string
	group string           // faults of one group never overlap
	hold  [2]time.Duration // how long it lasts, least and most
	// alone: it overlaps with no other fault, because what it does is promised for a system that is well otherwise.
	alone  bool
	weight int // 0 counts as 1
	most   int // how often it comes in a run, because it takes the longer the more there is by then; 0: as often as others
	needs  need
	inject injection
}

// need is what a fault can't do without.
type need int

const (
	needsNothing need = iota
	needsDisk         // disks that can be filled
	needsClock        // a clock that can be moved
	needsHuge         // time and room for millions of rows, which the command line allows
)

// injection breaks something and returns what mends it, which may be nil. An error says that nothing was broken; what it returns is called
// all the same.
type injection = func(ctx context.Context, s *stage, random *rand.Rand) (heal func(context.Context) error, err error)

// step is one fault of a plan.
type step struct {
	fault fault
	gap   time.Duration // since the step before
	hold  time.Duration
	seed  uint64 // of the fault's own choices
}

// roundFaults is how many faults of a run are injected until everything is healed and compared: the more there are, the longer some of them
// last.
func roundFaults(faults int) int {
	const least, most = 25, 50
	return min(max(faults/40, least), most)
}

// atOnce is how many faults may be active.
const atOnce = 3

// spare is the share of a plan that is held ready for faults which can't be injected: nobody leads at the moment, or a failpoint is not
// reached.
const spare = 6

// makePlan is the sequence of faults that a seed stands for, with some to spare. Every kind comes before one comes again, unless it has come
// often enough. last are those of
// a size that makes everything after them slower: one of each kind. Only faults whose names contain one of the words are taken.
func makePlan(seed uint64, all []fault, faults int, over time.Duration, words []string) (plan, last []step) {
	random := rand.New(rand.NewPCG(seed, 0))
	// Most of the time goes to faults that wait for their like to end, to those that are alone, and to comparing.
	mean := over / time.Duration(3*max(faults, 1))
	deal := func(f fault) step {
		spread := int64(f.hold[1]-f.hold[0]) + 1
		return step{
			fault: f, gap: time.Duration(random.Int64N(int64(2*mean) + 1)), hold: f.hold[0] + time.Duration(random.Int64N(spread)), seed: random.Uint64(),
		}
	}
	var kinds, deck []fault
	dealt := map[string]int{}
	for _, f := range all {
		switch {
		case !slices.ContainsFunc(words, func(word string) bool { return strings.Contains(f.name, word) }):
		case f.needs == needsHuge:
			last = append(last, deal(f))
		default:
			kinds = append(kinds, slices.Repeat([]fault{f}, max(f.weight, 1))...)
		}
	}
	for len(plan) < faults+faults/spare {
		if len(deck) == 0 {
			kinds = slices.DeleteFunc(kinds, func(f fault) bool { return f.most > 0 && dealt[f.name] >= f.most })
			deck = slices.Clone(kinds)
			random.Shuffle(len(deck), func(i, j int) { deck[i], deck[j] = deck[j], deck[i] })
		}
		if len(deck) == 0 {
			break
		}
		plan = append(plan, deal(deck[0]))
		dealt[deck[0].name]++
		deck = deck[1:]
	}
	return plan, last
}

// run carries a plan out, round by round, and compares after each.
func (s *stage) run(ctx context.Context, plan, last []step) {
	s.load.start(ctx, s.o.seed)
	watching, stop := context.WithCancel(ctx)
	var watched sync.WaitGroup
	for _, watch := range []func(context.Context){s.watchOracle, s.watchBounds, s.watchProgress} {
		watched.Go(func() { watch(watching) })
	}
	var from uint64
	for round := 1; len(plan) > 0 && s.injected() < s.o.faults && ctx.Err() == nil; round++ {
		n := min(roundFaults(s.o.faults), len(plan))
		s.tell(fmt.Sprintf("round %d", round))
		s.round(ctx, plan[:n], s.o.faults)
		plan = plan[n:]
		from = s.settle(ctx, from)
	}
	if len(last) > 0 && ctx.Err() == nil {
		s.tell("last round")
		s.round(ctx, last, math.MaxInt)
	}
	s.load.stop()
	s.probing.Wait()
	s.settle(ctx, 0) // once more, everything from the beginning
	stop()
	watched.Wait()
	s.checkEnd(ctx)
}

// inOrder puts those first that are alone, since they would wait for others to end, and then those that last long, since the round waits for
// them to end. The others keep their order.
func inOrder(steps []step) []step {
	const long = 10 * time.Second
	place := func(st step) int {
		switch {
		case st.fault.alone:
			return 0
		case st.hold > long:
			return 1
		}
		return 2
	}
	return slices.SortedStableFunc(slices.Values(steps), func(a, b step) int { return place(a) - place(b) })
}

// round injects faults, until there were enough, and returns once each is healed.
func (s *stage) round(ctx context.Context, steps []step, enough int) {
	var active sync.WaitGroup
	slots := make(chan struct{}, atOnce)
	groups := map[string]*sync.Mutex{}
	for _, st := range steps {
		if groups[st.fault.group] == nil {
			groups[st.fault.group] = &sync.Mutex{}
		}
	}
	for _, st := range inOrder(steps) {
		if !sleep(ctx, st.gap) || s.injected() >= enough {
			break
		}
		if st.fault.alone {
			active.Wait()
			s.calm(ctx)
			s.perform(ctx, st)
			s.calm(ctx)
			continue
		}
		slots <- struct{}{}
		group := groups[st.fault.group]
		group.Lock()
		active.Go(func() {
			s.perform(ctx, st)
			group.Unlock()
			<-slots
		})
	}
	active.Wait()
}

// injected is how many faults there were.
func (s *stage) injected() (n int) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, times := range s.happened {
		n += times
	}
	return n
}

// perform injects one fault, holds it, and heals it.
func (s *stage) perform(ctx context.Context, st step) {
	name := st.fault.name
	s.tell("inject " + name)
	heal, err := st.fault.inject(ctx, s, rand.New(rand.NewPCG(st.seed, 0)))
	if err != nil {
		s.tell(fmt.Sprintf("not injected: %s: %v", name, err))
	} else {
		s.mu.Lock()
		s.happened[name]++
		s.mu.Unlock()
		sleep(ctx, st.hold)
	}
	if heal != nil {
		if err := heal(context.WithoutCancel(ctx)); err != nil {
			s.violate(fmt.Sprintf("campaign: %s could not be healed: %v", name, err))
		}
	}
	s.tell("healed " + name)
	if err == nil {
		s.probing.Go(func() { s.probe(ctx, name) })
	}
}

// probe measures how long it takes after a fault until an event that was committed since is in ClickHouse. Other faults may be active.
func (s *stage) probe(ctx context.Context, name string) {
	began := time.Now()
	var key uint64
	poll(ctx, time.Minute, func() bool {
		ctx, cancel := context.WithTimeout(ctx, transactionTimeout)
		defer cancel()
		key = s.load.probe(ctx)
		return key != 0
	})
	if key == 0 {
		return
	}
	if poll(ctx, 2*time.Minute, func() bool { e, _ := s.journal.get(key); return e.seen }) {
		took := time.Since(began)
		s.tell(fmt.Sprintf("recovered %s after %s", name, took.Round(time.Millisecond)))
		s.mu.Lock()
		defer s.mu.Unlock()
		s.recovery = append(s.recovery, took)
	}
}

// calm waits until events flow as if nothing had happened.
func (s *stage) calm(ctx context.Context) {
	const patience = time.Minute
	poll(ctx, patience, func() bool {
		key := s.load.probe(ctx)
		return key != 0 && poll(ctx, 5*time.Second, func() bool { e, _ := s.journal.get(key); return e.seen })
	})
}

// settle lets the lag return to zero while nobody writes, and compares. It returns the id up to which everything was compared.
func (s *stage) settle(ctx context.Context, from uint64) uint64 {
	release := s.load.hold()
	defer release()
	if ctx.Err() != nil {
		return from
	}
	s.tell("settle")
	began := time.Now()
	var left int64
	backlog := int64(-1)
	limit := s.o.recovery
	for {
		n, err := s.oracle.backlog(ctx, from)
		if err == nil && backlog < 0 { // slower than anything measured, so that a busy machine is no violation
			const eventsPerSecond = 1000
			backlog = n
			limit += time.Duration(n) * time.Second / eventsPerSecond
		}
		if left = n; err == nil && n == 0 || time.Since(began) > limit || !sleep(ctx, 100*time.Millisecond) {
			break
		}
	}
	if ctx.Err() != nil {
		return from
	}
	s.tell(fmt.Sprintf("lag at zero after %s, %d events", time.Since(began).Round(time.Millisecond), backlog))
	if left != 0 {
		s.violate(fmt.Sprintf("lag: %d events are not delivered %s after everything was healed", left, time.Since(began).Round(time.Second)))
	}
	s.checkHealth(ctx)
	var highest uint64
	const base, perEvent = 10 * time.Second, 50 * time.Microsecond
	err := againFor(ctx, base+time.Duration(s.journal.len())*perEvent, func(ctx context.Context) error {
		if err := s.oracle.once(ctx); err != nil {
			return err
		}
		var err error
		highest, err = s.oracle.compare(ctx, from)
		return err
	})
	if err != nil {
		s.violate(fmt.Sprintf("campaign: could not compare: %v", err))
		return from
	}
	s.oracle.tampered.Store(false)
	return highest
}
