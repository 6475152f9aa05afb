package ops

import (
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/sluicebox/sluicebox/internal/replication"
)

// standing is how far delivery is behind the outbox, and what the slot keeps meanwhile. It is reckoned when somebody asks, so that it
// grows while nothing is heard from anybody.
//
// At each look at the slot, Postgres tells where its WAL ends: a mark. Once everything before that end is settled, everything that was
// committed before the look is. The lag is the age of the newest such mark, by our monotonic clock alone. A dead link, a ClickHouse that is
// down, a walsender that is behind: none of them lets a mark be passed.
type standing struct {
	mu        sync.Mutex
	standby   bool
	current   time.Time              // everything that was committed before is settled; at first only the time since when we look
	confirmed bool                   // current is a mark of this session
	proved    bool                   // current is a mark at all
	marks     []mark                 // not passed yet, oldest first
	space     time.Duration          // between two of them, at least; the newest one may be nearer
	delivered uint64                 // everything before it is settled; 0: not known in this session
	oldest    int64                  // when the oldest row was committed that is received and not settled, in microseconds since 1970; 0: none is
	ahead     time.Duration          // of Postgres's clock before ours
	slot      *replication.SlotState // nil: not looked at in this session
	growth    growth                 // of Postgres's WAL
}

// mark is where the WAL ended at a look at the slot, or later.
type mark struct {
	at  time.Time
	end uint64
}

const (
	// fresh is how old the newest passed mark may be for nothing to be late if no event is under way. Looks at the slot and keepalives come
	// once a second each, so that it is two seconds old at times.
	fresh = 5 * time.Second
	// mostMarks bounds the marks that are kept. With more, each second one is forgotten: the lag then seems larger than it is, never smaller,
	// by the space between two of them, at most a five hundredth of the time since the oldest. An even number.
	mostMarks = 1024
)

// lead begins or ends a session. Positions of another session may be those of another server.
func (s *standing) lead() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.marks, s.delivered, s.slot, s.confirmed, s.growth = nil, 0, nil, false, growth{}
}

// stand notes whether another daemon leads. That one tells the lag; ours counts from when we last saw that it does.
func (s *standing) stand(by bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.standby = by
	if by {
		s.current, s.oldest, s.proved = time.Now(), 0, false
	}
}

func (s *standing) progress(delivered uint64, oldest int64) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.delivered, s.oldest = delivered, oldest
}

func (s *standing) look(slot replication.SlotState, asked, answered time.Time) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.pass()
	s.slot = &slot
	if !slot.Exists {
		return
	}
	s.ahead = slot.Now.Sub(asked.Add(answered.Sub(asked) / 2))
	now := mark{at: asked, end: slot.WALEnd}
	s.mark(now)
	s.growth.add(now)
}

// mark adds a mark. The newest one is always kept, others only at some distance from each other if there are many.
func (s *standing) mark(newest mark) {
	n := len(s.marks)
	if n > 1 && s.marks[n-1].at.Sub(s.marks[n-2].at) < s.space {
		s.marks[n-1] = newest
		return
	}
	s.marks = append(s.marks, newest)
	if len(s.marks) <= mostMarks {
		return
	}
	kept := s.marks[:0]
	for i := 0; i < len(s.marks); i += 2 { // their number is odd, so that the newest stays
		kept = append(kept, s.marks[i])
	}
	s.marks, s.space = kept, newest.at.Sub(kept[0].at)/(mostMarks/2)
}

// pass takes away the marks before which everything is settled.
func (s *standing) pass() {
	for len(s.marks) > 0 && s.marks[0].end <= s.delivered {
		s.current, s.marks, s.confirmed = s.marks[0].at, s.marks[1:], true
		s.proved = true
	}
	if len(s.marks) == 0 {
		s.space = 0
	}
}

// onPostgres is what Postgres's clock shows at a moment of ours.
func (s *standing) onPostgres(t time.Time) time.Time {
	s.mu.Lock()
	defer s.mu.Unlock()
	return t.Add(s.ahead)
}

// since is the time from a commit to a moment of Postgres's clock.
func since(committed int64, t time.Time) time.Duration {
	return max(0, t.Sub(time.UnixMicro(committed)))
}

//nolint:gochecknoglobals // constants of a type that can't be constant
var (
	lagSeconds = prometheus.NewDesc("sluicebox_lag_seconds",
		"Age of the newest moment of which it is known that everything committed before it is delivered.", nil, nil)
	lagBytes = prometheus.NewDesc("sluicebox_lag_bytes",
		"WAL that Postgres had written, at the last look, after the position before which everything is delivered.", nil, nil)
	oldestSeconds = prometheus.NewDesc("sluicebox_oldest_unsettled_seconds",
		"Time since the commit of the oldest event that is received and not settled.", nil, nil)
	slotRetained = prometheus.NewDesc("sluicebox_slot_retained_wal_bytes",
		"WAL that Postgres keeps for the slot. Grows while nothing is acknowledged.", nil, nil)
	slotSafe = prometheus.NewDesc("sluicebox_slot_safe_wal_bytes",
		"WAL that may still be written until Postgres may invalidate the slot.", nil, nil)
	slotLost = prometheus.NewDesc("sluicebox_slot_seconds_until_lost",
		"Time until Postgres may invalidate the slot if nothing is acknowledged any more, at the rate at which WAL was written in the last ten minutes.", nil, nil)
	slotStatus = prometheus.NewDesc("sluicebox_slot_wal_status",
		"1 for the wal_status of the slot.", []string{"status"}, nil)
)

// Describe is for Prometheus.
func (s *standing) Describe(descs chan<- *prometheus.Desc) {
	for _, desc := range []*prometheus.Desc{lagSeconds, lagBytes, oldestSeconds, slotRetained, slotSafe, slotLost, slotStatus} {
		descs <- desc
	}
}

// Collect is for Prometheus, which may be slow to take them; delivery must not wait for it.
func (s *standing) Collect(metrics chan<- prometheus.Metric) {
	for _, metric := range s.known() {
		metrics <- metric
	}
}

// reading is what is known of the standing at one moment.
type reading struct {
	standby bool // then nothing else is known
	lag     time.Duration
	proved  bool                   // everything that was committed before the lag is delivered; else that is only the time since when we look
	oldest  time.Duration          // since the commit of the oldest event in hand; 0: none is
	bytes   int64                  // of WAL that is not delivered
	growth  float64                // of the WAL, in bytes a second; 0: not known
	slot    *replication.SlotState // nil: not looked at in this session, or missing; then bytes is not known either
}

func (s *standing) read() reading {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.standby {
		return reading{standby: true}
	}
	now := time.Now()
	s.pass()
	r := reading{lag: now.Sub(s.current), proved: s.proved}
	if s.oldest == 0 && s.confirmed && r.lag < fresh {
		r.lag = 0
	}
	if s.oldest != 0 {
		r.oldest = since(s.oldest, now.Add(s.ahead))
	}
	if s.slot == nil || !s.slot.Exists {
		return r
	}
	r.slot, r.growth = s.slot, s.growth.rate()
	r.bytes = max(0, int64(s.slot.WALEnd-max(s.delivered, s.slot.ConfirmedFlush))) // less than nothing, if more has come since the look
	return r
}

// known leaves out what is not known: a number would be a lie.
func (s *standing) known() (known []prometheus.Metric) {
	r := s.read()
	if r.standby {
		return nil
	}
	gauge := func(desc *prometheus.Desc, value float64, labels ...string) {
		known = append(known, prometheus.MustNewConstMetric(desc, prometheus.GaugeValue, value, labels...))
	}
	gauge(lagSeconds, r.lag.Seconds())
	gauge(oldestSeconds, r.oldest.Seconds())
	if r.slot == nil {
		return known
	}
	gauge(lagBytes, float64(r.bytes))
	gauge(slotRetained, float64(r.slot.RetainedWAL))
	if r.slot.SafeWAL != nil {
		gauge(slotSafe, float64(*r.slot.SafeWAL))
		if r.growth > 0 {
			gauge(slotLost, max(0, float64(*r.slot.SafeWAL))/r.growth)
		}
	}
	for _, status := range [...]string{"reserved", "extended", "unreserved", "lost"} {
		is := 0.0
		if status == r.slot.WALStatus {
			is = 1
		}
		gauge(slotStatus, is, status)
	}
	return known
}
