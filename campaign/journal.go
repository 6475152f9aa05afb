package main

import (
	"fmt"
	"hash/maphash"
	"strconv"
	"strings"
	"sync"
	"time"
)

// outcome is what a writer knows of the transaction of an event.
type outcome uint8

const (
	open      outcome = iota
	committed         // Postgres has acknowledged the commit
	aborted           // it was rolled back, or its savepoint was
	maybe             // the commit was sent and no reply came: Postgres is asked at the next comparison
)

// kind says what is to become of a committed event.
type kind uint8

const (
	ordinary  kind = iota
	poison         // ClickHouse has no place for its time: it belongs into quarantine
	refusable      // refused while a constraint is on the table, delivered by a request after that
	user           // written by the API, whose clock gives the time
)

// ghostType is the type of every event that is written in order to be rolled back: none may ever be seen in ClickHouse.
const ghostType = "never committed"

// refusedWord is in the context of every refusable event.
const refusedWord = "refuse-me"

// personal stands for personal data: it is in every event, and in no log or metric.
const personal = "planted-personal"

// event is what the writer of an event knows of it, before and after the commit.
type event struct {
	hash    uint64 // of all that must arrive, but for the time
	micros  int64  // event time, Unix microseconds; 0: not known, or infinite
	upper   uint64 // the commit's LSN is at most this; 0: not known
	agg     uint32 // aggregate; 0: none. The events of one are committed in the order of n
	n       uint32
	outcome outcome
	kind    kind
	seen    bool // the oracle has met it in ClickHouse
}

// journal is what the writers know. It never asks the daemon, nor anything that the daemon has written.
type journal struct {
	mu     sync.Mutex
	events []event  // by key; key 0 is not used
	acks   []uint64 // keys of acknowledged commits that were not held against the slot yet
}

func newJournal() *journal { return &journal{events: make([]event, 1, 1<<16)} }

// add enters an event that is about to be written. make gets its key, which is part of the event.
func (j *journal) add(describe func(key uint64) event) uint64 {
	j.mu.Lock()
	defer j.mu.Unlock()
	key := uint64(len(j.events))
	j.events = append(j.events, describe(key))
	return key
}

// end enters the outcome of a transaction. upper is an LSN at or after the commit, 0 if it is not known.
func (j *journal) end(keys []uint64, o outcome, upper uint64) {
	j.mu.Lock()
	defer j.mu.Unlock()
	for _, key := range keys {
		j.events[key].outcome, j.events[key].upper = o, upper
	}
	if o == committed && upper > 0 {
		j.acks = append(j.acks, keys...)
	}
}

// due returns the keys of ordinary events that were committed at or before lsn and not seen yet, and forgets what was seen.
func (j *journal) due(lsn uint64) (keys []uint64) {
	j.mu.Lock()
	defer j.mu.Unlock()
	left := j.acks[:0]
	for _, key := range j.acks {
		e := &j.events[key]
		if e.seen || e.kind == poison || e.kind == refusable {
			continue
		}
		left = append(left, key)
		if e.upper <= lsn {
			keys = append(keys, key)
		}
	}
	j.acks = left
	return keys
}

func (j *journal) get(key uint64) (event, bool) {
	j.mu.Lock()
	defer j.mu.Unlock()
	if key == 0 || key >= uint64(len(j.events)) {
		return event{}, false
	}
	return j.events[key], true
}

func (j *journal) saw(key uint64) {
	j.mu.Lock()
	defer j.mu.Unlock()
	j.events[key].seen = true
}

// resolve decides a maybe.
func (j *journal) resolve(key uint64, o outcome) {
	j.mu.Lock()
	defer j.mu.Unlock()
	j.events[key].outcome = o
}

// len is the number of the next key.
func (j *journal) len() uint64 {
	j.mu.Lock()
	defer j.mu.Unlock()
	return uint64(len(j.events))
}

var hashSeed = maphash.MakeSeed() //nolint:gochecknoglobals // hashes are compared within one run only

// contentHash is over everything that must arrive as it was written, but for the time.
func contentHash(eventType, environment, context string, version int64) uint64 {
	return maphash.String(hashSeed, eventType+"\x00"+environment+"\x00"+context+"\x00"+strconv.FormatInt(version, 10))
}

// contextOf writes a context as jsonb prints it, so that what arrives can be compared byte for byte with what the writer meant.
func contextOf(key uint64, writer int, agg, n uint32, pad string) string {
	return fmt.Sprintf(`{"k": %d, "n": %d, "w": %d, "agg": %d, "pad": "%s"}`, key, n, writer, agg, pad)
}

// userContext is the context of the event that the API writes of a user.
func userContext(key uint64) string {
	return fmt.Sprintf(`{"email": "%s", "last_name": "%s", "first_name": "Ada"}`, emailOf(key), personal)
}

func emailOf(key uint64) string { return fmt.Sprintf("u%d@%s.example", key, personal) }

// keyOf finds the key in a context; 0: there is none.
func keyOf(context string) uint64 {
	for _, form := range []struct{ prefix, end string }{{`{"k": `, `,`}, {`{"email": "u`, `@`}} {
		if rest, ok := strings.CutPrefix(context, form.prefix); ok {
			digits, _, _ := strings.Cut(rest, form.end)
			if key, err := strconv.ParseUint(digits, 10, 64); err == nil {
				return key
			}
		}
	}
	return 0
}

// row is an event as a writer sends it.
type row struct {
	key     uint64
	kind    kind
	typ     string
	at      time.Time
	context string
}

const (
	environment = "campaign"
	version     = 3
)
