package pipeline

import (
	"context"
	"fmt"
	"slices"
	"time"

	"github.com/jackc/pgx/v5/pgconn"

	"github.com/sluicebox/sluicebox/internal/replication"
	"github.com/sluicebox/sluicebox/outbox"
)

// memoryCluster is the rest of Postgres.
type memoryCluster struct{ *daemon }

func (c *memoryCluster) Database(context.Context) (string, error) { return "database", nil }

func (c *memoryCluster) Identity(ctx context.Context) (system string, timeline int32, err error) {
	err = c.call(ctx, "identity", func() error {
		timeline = c.w.timeline
		return nil
	})
	return "system", timeline, err
}

func (c *memoryCluster) Slot(ctx context.Context) (state replication.SlotState, err error) {
	err = c.call(ctx, "beat", func() error {
		if s := c.w.slot; s != nil {
			state = replication.SlotState{Exists: true, Plugin: "pgoutput", Database: "database", ConfirmedFlush: s.confirmed}
			if s.lost {
				state.Lost = "wal_removed"
			}
		}
		return nil
	})
	return state, err
}

func (c *memoryCluster) DropSlot(ctx context.Context) error {
	return c.call(ctx, "drop slot", func() error {
		if c.w.slot != nil && c.w.slot.reader != nil {
			return &pgconn.PgError{Code: "55006"}
		}
		c.w.slot = nil
		return nil
	})
}

func (c *memoryCluster) CreateSlot(ctx context.Context) (opened snapshot, start uint64, err error) {
	err = c.call(ctx, "create slot", func() error {
		w := c.w
		if w.slot != nil {
			return &pgconn.PgError{Code: "42710"}
		}
		w.lsn += 10
		start = w.lsn
		w.slot = &slot{confirmed: start, before: start}
		view := &memorySnapshot{d: c.daemon}
		for _, e := range w.events {
			if !e.marked && !e.quarantined && (w.weak != foreignSnapshot || e.seen()) {
				row := e.Row
				row.Position = outbox.Position{CommitLSN: start}
				view.rows = append(view.rows, row)
			}
		}
		slices.SortFunc(view.rows, func(a, b outbox.Row) int { return int(a.ID - b.ID) })
		opened = view
		return nil
	})
	return opened, start, err
}

func (c *memoryCluster) Blockers(context.Context) ([]replication.Blocker, error) { return nil, nil }

func (c *memoryCluster) Start(ctx context.Context, from, acked uint64) (opened source, err error) {
	err = c.call(ctx, "start stream", func() error {
		s := c.w.slot
		switch {
		case s == nil:
			return &replication.GapError{Kind: replication.SlotMissing, Reason: "the slot is missing"}
		case s.lost:
			return &replication.GapError{Kind: replication.SlotLost, Reason: "the slot is lost"}
		case s.reader != nil:
			return &pgconn.PgError{Code: "55006"}
		}
		from := max(from, s.confirmed) // without a word (FACTS P4)
		f := &feed{
			d: c.daemon, slot: s, pos: from, from: from, acked: acked,
			out: make(chan []replication.Event), done: make(chan struct{}), closed: make(chan struct{}),
		}
		s.reader = f
		go f.run()
		opened = f
		return nil
	})
	if err != nil && opened != nil {
		opened.Close()
		return nil, err
	}
	return opened, err
}

func (c *memoryCluster) FindPublication(ctx context.Context) (identity string, err error) {
	err = c.call(ctx, "beat", func() error {
		identity = fmt.Sprint(c.w.publication)
		return nil
	})
	return identity, err
}

func (c *memoryCluster) EnsurePublication(ctx context.Context) (identity string, err error) {
	return c.FindPublication(ctx)
}

// memorySnapshot is what a slot's start saw.
type memorySnapshot struct {
	d    *daemon
	rows []outbox.Row
}

func (s *memorySnapshot) Unprocessed(context.Context) (int64, error) { return int64(len(s.rows)), nil }

func (s *memorySnapshot) Rows(ctx context.Context, each func(*outbox.Row) error) error {
	for _, row := range s.rows {
		if err := s.d.call(ctx, "row", func() error { return nil }); err != nil {
			return err
		}
		if err := each(&row); err != nil {
			return err
		}
	}
	return nil
}

func (s *memorySnapshot) Close(context.Context) {}

// feed is an open stream.
type feed struct {
	d      *daemon
	slot   *slot
	pos    uint64 // the next commit to send is at or after it
	from   uint64
	acked  uint64
	out    chan []replication.Event
	done   chan struct{}
	closed chan struct{}
	ended  bool
	err    error
}

func (f *feed) Events() <-chan []replication.Event { return f.out }
func (f *feed) Done() <-chan struct{}              { return f.done }
func (*feed) Reuse(chunk []replication.Event)      { clear(chunk) } // whoever kept a part of it would see
func (f *feed) Err() error                         { return f.err }

func (f *feed) Ack(lsn uint64) {
	f.d.w.mu.Lock()
	defer f.d.w.mu.Unlock()
	f.acked = max(f.acked, lsn)
}

func (f *feed) Close() {
	f.d.w.mu.Lock()
	f.fail(context.Canceled)
	f.d.w.mu.Unlock()
	<-f.closed
}

// fail ends the stream; the world is locked.
func (f *feed) fail(err error) {
	if f.ended {
		return
	}
	f.ended, f.err = true, err
	if f.slot.reader == f {
		f.slot.reader = nil
	}
	if err == context.Canceled { //nolint:errorlint // it is this very one; a graceful end tells what is acknowledged
		f.tell()
	}
	close(f.done)
}

// tell lets the server forget what is acknowledged.
func (f *feed) tell() {
	w := f.d.w
	if f.d.dead || f.acked <= f.slot.confirmed {
		return
	}
	for _, e := range w.events {
		if e.streamed && e.Position.CommitLSN >= f.from && e.end <= f.acked && !e.marked && !e.quarantined {
			w.wrong("row %d is acknowledged and not settled", e.ID)
		}
	}
	f.slot.before, f.slot.confirmed = f.slot.confirmed, f.acked
}

// next is the transaction to send next: part of it, if it is large.
func (f *feed) next(after outbox.Position) (chunk []replication.Event, last outbox.Position) {
	for _, e := range f.d.w.events {
		if !e.streamed || e.Position.CommitLSN < f.pos || e.Position.Compare(after) <= 0 {
			continue
		}
		if len(chunk) > 0 && last.CommitLSN != e.Position.CommitLSN {
			break
		}
		if len(chunk) == 3 {
			return chunk, last
		}
		last = e.Position
		chunk = append(chunk, replication.Event{Kind: replication.Insert, Row: e.Row})
		f.pos = e.Position.CommitLSN
	}
	if len(chunk) > 0 {
		i := slices.IndexFunc(f.d.w.events, func(e *event) bool { return e.Position == last })
		chunk = append(chunk, replication.Event{Kind: replication.Commit, LSN: f.d.w.events[i].end})
	}
	return chunk, last
}

func (f *feed) run() {
	defer close(f.closed)
	w := f.d.w
	var after outbox.Position
	status := time.NewTicker(time.Second)
	defer status.Stop()
	for {
		w.mu.Lock()
		chunk, last := f.next(after)
		if len(chunk) == 0 {
			chunk = []replication.Event{{Kind: replication.Idle, LSN: w.lsn}}
		}
		idle := chunk[0].Kind == replication.Idle
		changed := w.changed
		w.mu.Unlock()
		select {
		case f.out <- chunk:
			if !idle {
				after = last
				continue
			}
		case <-status.C:
		case <-f.done:
			return
		}
		if idle { // wait for something to happen
			select {
			case <-changed:
				continue
			case <-status.C:
			case <-f.done:
				return
			}
		}
		w.mu.Lock()
		if !f.ended {
			f.tell()
		}
		w.mu.Unlock()
	}
}
