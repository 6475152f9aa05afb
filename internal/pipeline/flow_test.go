package pipeline

import (
	"context"
	"errors"
	"testing"
	"time"

	"github.com/rs/zerolog"

	"github.com/sluicebox/sluicebox/internal/batch"
	"github.com/sluicebox/sluicebox/outbox"
)

// planBooks only plans.
type planBooks struct {
	books

	plans chan struct{}
}

func (b planBooks) Plan(context.Context, *batch.Batch) error { b.plans <- struct{}{}; return nil }

// takingSink takes everything.
type takingSink struct{ Sink }

func (takingSink) Clock(context.Context) (now, deadline time.Time, err error) {
	return time.Now(), time.Time{}, nil
}
func (takingSink) Write(context.Context, *batch.Batch) error { return nil }

// TestPlannedToldTwice has the loop find both that a batch is planned and that it is written, since it was busy, and take the latter first: select chooses at
// random. Then the next batch is planned, and the session ends before the loop comes to f.planned.
func TestPlannedToldTwice(t *testing.T) {
	t.Parallel()
	books := planBooks{plans: make(chan struct{}, 2)}
	p := newOn(Config{}, books, nil, takingSink{}, silent{}, zerolog.Nop())
	b := func(id int64) *batch.Batch {
		builder := batch.NewBuilder(batch.Limits{Rows: 10, Bytes: 1 << 20})
		builder.Add(&outbox.Row{ID: id, Type: "t", Time: time.Now(), Position: outbox.Position{CommitLSN: uint64(id), Ordinal: 1}})
		return builder.Seal(batch.ByRows)
	}
	f := &flow{
		p: p, builder: batch.NewBuilder(batch.Limits{Rows: 10, Bytes: 1 << 20}), ready: []*batch.Batch{b(1), b(2)},
		planned: make(chan struct{}, 1), wrote: make(chan error, 1), landed: make(chan error, 1),
	}
	work, cancel := context.WithCancelCause(t.Context())
	f.launch(work, work)
	if err := <-f.wrote; err != nil { // and not f.planned, which holds one as well
		t.Fatal(err)
	}
	<-books.plans
	f.wroteOne()
	f.launch(work, work)
	<-books.plans // the second batch is planned
	cancel(errors.New("Allow has failed, the stream has broken: run has returned"))
	ended := make(chan struct{})
	go func() { f.flights.Wait(); close(ended) }()
	select {
	case <-ended:
	case <-time.After(20 * time.Second):
		t.Fatal("the session never ends: write waits for somebody to be told that the batch is planned")
	}
}
