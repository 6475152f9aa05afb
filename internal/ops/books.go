package ops

import (
	"context"
	"sync"
	"time"

	"github.com/sluicebox/sluicebox/internal/ledger"
)

// Books are what the status page reads of the ledger, and the one thing that it changes.
type Books interface {
	Brief(ctx context.Context) (*ledger.Status, error)
	History(ctx context.Context, limit int) ([]ledger.PastBatch, error)
	Quarantine(ctx context.Context, all bool, limit int) (listed []ledger.Quarantined, total int64, err error)
	Retry(ctx context.Context, ids []int64) error
}

const (
	// readInterval is how old what is shown of Postgres may be before it is read anew, however many look at the page.
	readInterval = 2 * time.Second
	// readTimeout bounds reading it. Whoever asks first waits for that long; all others get what is known.
	readTimeout = 3 * time.Second
	// retryInterval is how long Postgres is left alone after it did not answer: asking costs somebody readTimeout each time.
	retryInterval = 10 * time.Second

	listedBatches     = 12
	listedQuarantined = 20
)

// known is what Postgres told last.
type known struct {
	at         time.Time // by our clock; zero: nothing was read yet
	status     *ledger.Status
	batches    []ledger.PastBatch
	quarantine []ledger.Quarantined
	err        error // of the last try, after at
}

// reader reads the ledger for all who look at the page, one at a time.
type reader struct {
	books Books

	reading sync.Mutex

	mu    sync.Mutex
	known known
	next  time.Time // not before it is read again
}

// read gives what is known, at most as old as readInterval if Postgres answers and nobody else is reading.
func (r *reader) read(ctx context.Context) known {
	if k, fresh := r.last(); fresh || !r.reading.TryLock() {
		return k
	}
	defer r.reading.Unlock()
	if k, fresh := r.last(); fresh { // somebody was faster
		return k
	}
	// Not for as long as the viewer stays: what was read is for all.
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), readTimeout)
	defer cancel()
	k := r.ask(ctx)
	r.mu.Lock()
	defer r.mu.Unlock()
	if k.err != nil {
		r.known.err, r.next = k.err, time.Now().Add(retryInterval)
	} else {
		r.known, r.next = k, time.Now().Add(readInterval)
	}
	return r.known
}

func (r *reader) last() (k known, fresh bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.known, time.Now().Before(r.next)
}

// expire has the next one read anew.
func (r *reader) expire() {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.next = time.Time{}
}

func (r *reader) ask(ctx context.Context) (k known) {
	if k.status, k.err = r.books.Brief(ctx); k.err != nil {
		return k
	}
	if k.batches, k.err = r.books.History(ctx, listedBatches); k.err != nil {
		return k
	}
	if k.quarantine, _, k.err = r.books.Quarantine(ctx, false, listedQuarantined); k.err != nil {
		return k
	}
	k.at = time.Now()
	return k
}
