package pipeline_test

import (
	"fmt"
	"maps"
	"slices"
	"testing"

	"pgregory.net/rapid"
)

// This is a model of the protocol of delivery: the steps of deliver.go and write.go, one at a time, for two daemons on one ledger and
// one table in memory. Between any two steps a daemon may be killed, or paused while the other one takes over; time may pass; an insert
// may land early, late or never, and its reply may be lost. Rows are numbers in commit order. The variants each lack one rule, and must
// be found out: else the model would prove nothing.

// variant says which rules the daemons break.
type variant struct {
	tokenAlone    bool // nothing is planned or looked up; a token is the first row of its batch
	lookUpAlone   bool // tokens do nothing, as without a window
	unfenced      bool // plans and settlements do not ask for the epoch
	notQuiet      bool // a refused batch is halved at once
	lateDeadline  bool // the deadline of a further attempt counts from after the look-up
	settlesFirst  bool
	acknowledges  bool // before it settles
	trustsSuccess bool // of a further attempt, without a look
}

const (
	deadlineIn = 3 // units of time from planning until ClickHouse refuses a batch
	window     = 4 // that ClickHouse remembers a token for: longer than an attempt may take, and no more
)

// plan is a batch in the ledger, and in the memory of the daemon that delivers it.
type plan struct {
	seq, token, deadline, end int
	ids, rows, rest, rejected []int
}

func (p plan) clone() plan {
	p.ids, p.rows, p.rest, p.rejected = slices.Clone(p.ids), slices.Clone(p.rows), slices.Clone(p.rest), slices.Clone(p.rejected)
	return p
}

// insert is on its way to ClickHouse.
type insert struct {
	from, attempt, token, deadline int
	rows                           []int
}

type place string // where a daemon is

const (
	dead       place = "dead"
	between    place = "between batches"
	planning   place = "plan"
	running    place = "run"
	looking    place = "look"
	replanning place = "plan anew"
	sending    place = "send"
	waiting    place = "wait for the reply"
	confirming place = "confirm"
	isolating  place = "isolate"
	settling   place = "settle"
	acking     place = "acknowledge"
)

type modelled struct {
	at, then place
	epoch    int
	todo     []plan // of earlier daemons
	streams  bool   // all of todo is done
	position int    // of the last row that was gathered

	b              plan
	look, careful  bool
	renewed        bool
	until, since   int // an attempt may land until; the deadline counts since
	sizes, suspect []int
	attempt        int
}

// model is both stores, both daemons, and what is between them.
type model struct {
	t *rapid.T
	variant

	now, committed, tokens int
	daemons                [2]modelled
	leader                 int // the daemon that took the lead last
	// Postgres:
	epoch, seq, settled, slot int
	plans                     map[int]plan
	marked, quarantined       map[int]bool
	// ClickHouse:
	stored   map[int]int // how often
	known    map[int]int // when a token was noted
	refuses  bool        // row 2, whatever batch it is in
	inFlight []insert
}

func newModel(t *rapid.T, v variant) *model {
	return &model{
		t: t, variant: v, plans: map[int]plan{}, marked: map[int]bool{}, quarantined: map[int]bool{}, stored: map[int]int{}, known: map[int]int{},
		daemons: [2]modelled{{at: dead}, {at: dead}},
	}
}

func (m *model) pick(n int, what string) int { return rapid.IntRange(0, n-1).Draw(m.t, what) }

func (m *model) say(format string, args ...any) {
	m.t.Logf("%3d "+format, append([]any{m.now}, args...)...) // costs nothing but when a failure is shown
}

func (m *model) missing(rows []int) (out []int) {
	for _, row := range rows {
		if m.stored[row] == 0 {
			out = append(out, row)
		}
	}
	return out
}

// boot takes the lead.
func (m *model) boot(i int) {
	m.epoch++
	m.leader = i
	m.daemons[i] = modelled{at: between, epoch: m.epoch}
	for _, seq := range slices.Sorted(maps.Keys(m.plans)) {
		m.daemons[i].todo = append(m.daemons[i].todo, m.plans[seq].clone())
	}
	m.say("%d leads, epoch %d, settled up to %d, %d planned", i, m.epoch, m.settled, len(m.plans))
}

// fenced ends a daemon that was succeeded.
func (m *model) fenced(d *modelled) bool {
	if m.unfenced || d.epoch == m.epoch {
		return false
	}
	d.at = dead
	return true
}

func (m *model) token() int { m.tokens++; return m.tokens }

// bind plans the rows anew under a token of their own.
func (m *model) bind(d *modelled) {
	d.b.token, d.look, d.until, d.since = 0, d.careful, 0, m.now
	d.at, d.then = replanning, running
}

// mayLand notes that the outcome of an attempt is unknown.
func (m *model) mayLand(d *modelled) {
	d.at, d.look, d.until = running, !m.tokenAlone, d.b.deadline
}

// step makes one step of a daemon; false: it can only wait.
func (m *model) step(i int) bool {
	d := &m.daemons[i]
	m.say("%d: %s %v", i, d.at, d.b.rows)
	switch d.at {
	case between:
		return m.begin(d)
	case planning:
		if m.fenced(d) {
			return true
		}
		d.b.token = m.token()
		if m.tokenAlone {
			d.b.token = -d.b.ids[0]
		} else {
			m.seq++
			d.b.seq = m.seq
			m.plans[d.b.seq] = d.b.clone()
		}
		d.at = running
		if m.settlesFirst {
			m.settle(d)
			d.at = running
		}
	case running:
		return m.run(d)
	case looking:
		missing := m.missing(d.b.rows)
		all := len(missing) == len(d.b.rows)
		if all && d.until == 0 && d.b.token != 0 {
			d.look, d.at = false, sending
			return true
		}
		if !all {
			d.b.token = 0
		}
		d.b.rows, d.since = missing, m.now
		d.at, d.then = replanning, sending
		if len(missing) == 0 {
			d.until, d.at = 0, running
		}
	case replanning:
		if m.fenced(d) {
			return true
		}
		if d.b.token == 0 {
			d.b.token = m.token()
		}
		if m.lateDeadline {
			d.since = m.now
		}
		d.b.deadline = d.since + deadlineIn
		for _, row := range d.b.rejected {
			m.quarantined[row] = true
		}
		m.plans[d.b.seq] = d.b.clone()
		d.at = d.then
	case sending:
		d.attempt++
		m.inFlight = append(m.inFlight, insert{i, d.attempt, d.b.token, d.b.deadline, slices.Clone(d.b.rows)})
		d.at = waiting
	case waiting: // for too long
		m.mayLand(d)
	case confirming:
		switch {
		case len(m.missing(d.b.rows)) == 0 || m.trustsSuccess:
			d.b.rows, d.until, d.at = nil, 0, running
		case d.renewed:
			d.at = dead // it halts
		default:
			d.b.token, d.renewed, d.at = 0, true, running
		}
	case isolating:
		return m.isolate(d)
	case settling:
		if m.fenced(d) {
			return true
		}
		if m.acknowledges {
			m.slot = max(m.slot, d.b.end)
			m.acknowledges = false // is found by the next look at the invariants
			return true
		}
		m.settle(d)
	case acking:
		if d.epoch != m.epoch { // the session that read the slot has ended
			d.at = dead
			return true
		}
		m.slot = max(m.slot, d.b.end)
		d.at = between
	case dead:
		return false
	}
	return true
}

// begin takes the next batch: what was planned before, or what comes next.
func (m *model) begin(d *modelled) bool {
	if len(d.todo) > 0 {
		d.b, d.todo = d.todo[0], d.todo[1:]
		d.look, d.careful, d.renewed, d.until, d.at = true, true, false, d.b.deadline, running
		return true
	}
	if !d.streams {
		d.streams, d.position = true, m.settled
	}
	if d.position == m.committed {
		return false
	}
	d.b = plan{deadline: m.now + deadlineIn}
	largest := min(3, m.committed-d.position)
	for range largest - m.pick(largest, "fewer rows") {
		d.position++
		d.b.ids = append(d.b.ids, d.position)
	}
	d.b.rows, d.b.end = slices.Clone(d.b.ids), d.position
	d.look, d.careful, d.renewed, d.until, d.at = false, false, false, 0, planning
	return true
}

// run is writing.run and writing.next.
func (m *model) run(d *modelled) bool {
	left := len(d.b.rest) - len(d.suspect)
	switch {
	case len(d.b.rows) > 0 && d.look:
		d.at = looking
	case len(d.b.rows) > 0:
		d.at = sending
	case left > 0:
		size := left
		if len(d.sizes) > 0 {
			size, d.sizes = min(d.sizes[0], left), d.sizes[1:]
		}
		d.b.rows, d.b.rest = d.b.rest[:size:size], d.b.rest[size:]
		m.bind(d)
	case len(d.suspect) > 0:
		is := func(row int) bool { return slices.Contains(d.suspect, row) }
		d.b.rest, d.b.ids = slices.DeleteFunc(d.b.rest, is), slices.DeleteFunc(d.b.ids, is)
		d.b.rejected, d.suspect = append(d.b.rejected, d.suspect...), nil
		m.bind(d)
	default:
		d.at = settling
	}
	return true
}

// isolate is writing.isolate, of a batch that was refused.
func (m *model) isolate(d *modelled) bool {
	if d.until >= m.now && d.until > 0 && !m.notQuiet {
		return false
	}
	d.until = 0
	n := len(d.b.rows)
	switch {
	case len(m.missing(d.b.rows)) < n:
		d.at = running
		return true
	case n == 1:
		d.suspect, d.b.rest, d.b.rows = append(d.suspect, d.b.rows[0]), append(d.b.rest, d.b.rows[0]), nil
		d.at = running
		return true
	}
	d.sizes = slices.Insert(d.sizes, 0, n-n/2)
	d.b.rest = slices.Concat(d.b.rows[n/2:], d.b.rest)
	d.b.rows = d.b.rows[: n/2 : n/2]
	m.bind(d)
	return true
}

func (m *model) settle(d *modelled) {
	for _, row := range d.b.ids {
		m.marked[row] = true
	}
	m.settled = max(m.settled, d.b.end)
	delete(m.plans, d.b.seq)
	d.at = acking
}

// arrive lets an insert reach ClickHouse. rowsLost: the server notes the token and dies before it has the rows.
func (m *model) arrive(k int, replyLost, rowsLost bool) {
	in := m.inFlight[k]
	m.inFlight = slices.Delete(m.inFlight, k, k+1)
	noted, known := m.known[in.token]
	known = known && m.now <= noted+window && !m.lookUpAlone
	outcome := "stored"
	switch {
	case m.now > in.deadline:
		outcome = "expired"
	case m.refuses && slices.Contains(in.rows, 2):
		outcome = "refused"
	case known:
		outcome = "known"
	case rowsLost:
		m.known[in.token], replyLost = m.now, true
		outcome = "noted, and the rows lost"
	default:
		m.known[in.token] = m.now
		for _, row := range in.rows {
			m.stored[row]++
		}
	}
	m.say("insert %v of %d under %d: %s, reply lost: %v", in.rows, in.from, in.token, outcome, replyLost)
	d := &m.daemons[in.from]
	if replyLost || d.at != waiting || d.attempt != in.attempt || d.b.token != in.token {
		return
	}
	switch outcome {
	case "expired":
		m.mayLand(d)
	case "refused":
		d.look, d.at = true, isolating
	default:
		d.at = confirming
		if !d.look {
			d.b.rows, d.until, d.at = nil, 0, running
		}
	}
}

// wrong names what no state may show.
func (m *model) wrong() string {
	for row := 1; row <= m.committed; row++ {
		switch {
		case m.stored[row] > 1:
			return fmt.Sprintf("row %d is doubled", row)
		case m.marked[row] && m.stored[row] == 0:
			return fmt.Sprintf("row %d is settled and not in ClickHouse", row)
		case row <= m.slot && !m.marked[row] && !m.quarantined[row]:
			return fmt.Sprintf("row %d is acknowledged and not settled", row)
		case m.quarantined[row] && m.stored[row] > 0:
			return fmt.Sprintf("row %d is in quarantine and in ClickHouse", row)
		}
	}
	return ""
}

// act lets one thing happen. The generator prefers small numbers, so what must happen often comes first.
func (m *model) act() {
	switch m.pick(10, "what") {
	case 0: // until it waits for a reply, or has nothing to do
		for went := true; went && m.daemons[m.leader].at != waiting; {
			went = m.step(m.leader)
		}
	case 1:
		if len(m.inFlight) > 0 {
			m.arrive(len(m.inFlight)-1-m.pick(len(m.inFlight), "older insert"), m.pick(2, "reply") == 1, m.pick(8, "rows lost") == 7)
		}
	case 2:
		for range 1 + m.pick(4, "steps") {
			m.step(m.leader)
		}
	case 3: // or the machine was suspended
		m.now += 1 + 10*m.pick(2, "suspended")
	case 4: // it was paused, and does not know yet
		m.step(1 - m.leader)
	case 5:
		m.refuses = !m.refuses
	case 6: // lost on the way
		m.inFlight = m.inFlight[:max(len(m.inFlight)-1, 0)]
	case 7:
		m.boot(1 - m.leader)
	case 8:
		m.say("%d is killed, and starts again", m.leader)
		m.boot(m.leader)
	case 9:
		m.committed += 1 + m.pick(3, "commits")
	}
}

// finish lets one daemon go on without a fault until there is nothing to do.
func (m *model) finish() string {
	for range 4 { // one may have to halt
		m.daemons = [2]modelled{{at: dead}, {at: dead}}
		m.boot(0)
		for d := &m.daemons[0]; d.at != dead; {
			if len(m.inFlight) > 0 {
				m.arrive(0, false, false)
			} else if !m.step(0) {
				if d.at == between {
					break
				}
				m.now++
			}
			if problem := m.wrong(); problem != "" {
				return problem
			}
		}
	}
	for row := 1; row <= m.committed; row++ {
		if m.stored[row] == 0 && !m.quarantined[row] {
			return fmt.Sprintf("row %d is lost", row)
		}
	}
	return ""
}

// deliver makes one history and returns what is wrong with it.
func deliver(t *rapid.T, v variant) (problem string) {
	m := newModel(t, v)
	m.committed = 3
	m.boot(0)
	for range 10 + m.pick(60, "length") {
		m.act()
		if problem := m.wrong(); problem != "" {
			return problem
		}
	}
	return m.finish()
}

func TestModel(t *testing.T) {
	t.Parallel()
	t.Run("no row is lost, doubled, settled before it is stored or acknowledged before it is settled", func(t *testing.T) {
		t.Parallel()
		rapid.Check(t, func(t *rapid.T) {
			for range 100 {
				if problem := deliver(t, variant{}); problem != "" {
					t.Fatal(problem)
				}
			}
		})
	})
	for name, v := range map[string]variant{
		"a token alone":                               {tokenAlone: true},
		"a look-up alone":                             {lookUpAlone: true},
		"a plan without a fence":                      {unfenced: true},
		"halving while an attempt may land":           {notQuiet: true},
		"a deadline that counts from after a look-up": {lateDeadline: true},
		"settling before writing":                     {settlesFirst: true},
		"acknowledging before settling":               {acknowledges: true},
		"trusting the success of a second attempt":    {trustsSuccess: true},
	} {
		t.Run(name+" is not enough", func(t *testing.T) {
			t.Parallel()
			history := rapid.Custom(func(t *rapid.T) string { return deliver(t, v) })
			const histories = 20_000
			for seed := range histories {
				if problem := history.Example(seed); problem != "" {
					t.Logf("%s: after %d histories: %s", name, seed+1, problem)
					return
				}
			}
			t.Errorf("nothing is wrong with %d histories of %s", histories, name)
		})
	}
}
