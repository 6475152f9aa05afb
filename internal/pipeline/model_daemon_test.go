package pipeline

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/rs/zerolog"

	"github.com/sluicebox/sluicebox/internal/batch"
	"github.com/sluicebox/sluicebox/internal/replication"
)

// trouble is what befalls a daemon at one of its calls.
type trouble string

const (
	killedBefore trouble = "killed before it"
	killedAfter  trouble = "killed after it"
	pausedBefore trouble = "paused before it"
	pausedAfter  trouble = "paused after it"
	failsBefore  trouble = "it fails"
	failsAfter   trouble = "its reply is lost"
	landsLate    trouble = "it lands late"     // writes only, as the next one
	losesRows    trouble = "it loses the rows" // ClickHouse dies between noting the token and storing the rows
	landsNever   trouble = "it is lost on the way"
)

// fault strikes at a call.
type fault struct {
	at   int // the how many'th call from now; 0: it has struck
	what trouble
	long time.Duration // the pause, or until the next start, or until it lands
}

// daemon is one process, and the next one of its name.
type daemon struct {
	w     *world
	name  string
	fault fault

	// Of the process:
	life    int
	dead    bool
	restart time.Duration
	paused  time.Time // until then
	stop    context.CancelFunc
	gone    chan struct{} // the process has ended
	epoch   int64
	seq     int64
}

var errKilled = errors.New("killed")

// supervise runs one process after the other, as systemd does, until quit is closed. ended gets how the last one stopped.
func (d *daemon) supervise(quit <-chan struct{}, ended chan<- error) {
	for {
		process := d.next()
		ctx, cancel := context.WithCancel(context.Background())
		d.w.mu.Lock()
		process.stop = cancel
		d.w.mu.Unlock()
		p := newOn(Config{
			Replication: replication.Config{Slot: "slot", Publication: "publication", Schema: "public", Table: "event_outbox"},
			Limits:      batch.Limits{Rows: 4, Bytes: 1 << 20, Delay: 50 * time.Millisecond},
			Holder:      fmt.Sprintf("%s%d", d.name, process.life), TakeoverAfter: 4 * time.Second, DrainTimeout: 10 * time.Second, PoisonShare: 1,
		}, &memoryLedger{process}, &memoryCluster{process}, &memorySink{process}, silent{}, zerolog.Nop())
		over := make(chan error, 1)
		go func() { over <- p.Run(ctx) }()
		select {
		case err := <-over:
			cancel()
			process.exit(err)
		case <-process.gone: // what is left of it does nothing any more
			cancel()
		case <-quit:
			cancel()
			ended <- <-over
			return
		}
		select {
		case <-time.After(process.restart):
		case <-quit:
			ended <- nil
			return
		}
	}
}

// next is a new process of the name.
func (d *daemon) next() *daemon {
	d.w.mu.Lock()
	defer d.w.mu.Unlock()
	d.life++
	process := &daemon{w: d.w, name: d.name, life: d.life, gone: make(chan struct{}), restart: time.Second}
	d.w.running[d.name] = process
	d.w.say("%s%d starts", d.name, d.life)
	return process
}

// exit is the end of a process by itself.
func (d *daemon) exit(err error) {
	d.w.mu.Lock()
	defer d.w.mu.Unlock()
	d.w.say("%s%d exits: %v", d.name, d.life, err)
	d.end()
}

// kill ends the process where it is. The world is locked.
func (d *daemon) kill(restart time.Duration) {
	if d.dead {
		return
	}
	d.w.say("%s%d is killed", d.name, d.life)
	d.restart = restart
	d.end()
	close(d.gone)
}

func (d *daemon) end() {
	d.dead = true
	if lock := d.w.lock; lock != nil && lock.d == d {
		lock.end()
	}
	if s := d.w.slot; s != nil && s.reader != nil && s.reader.d == d {
		s.reader.fail(errGone)
	}
}

// latency of a call, each way. Calls of two daemons meet in every order, since faults move them against each other.
const latency = 3 * time.Millisecond

// wait lets time pass for this process; nothing of it moves while it is paused.
func (d *daemon) wait(span time.Duration) {
	<-time.After(span)
	for {
		d.w.mu.Lock()
		left := time.Until(d.paused)
		if d.dead {
			left = 0
		}
		d.w.mu.Unlock()
		if left <= 0 {
			return
		}
		<-time.After(left)
	}
}

// strike says what befalls this call. The world is locked.
func (d *daemon) strike(name string) trouble {
	f := &d.fault
	if f.at == 0 {
		return ""
	}
	if f.at > 1 {
		f.at--
		return ""
	}
	ofWrite := f.what == landsLate || f.what == losesRows || f.what == landsNever
	if ofWrite && name != "write" {
		return ""
	}
	f.at = 0
	d.w.say("%s%d, %s: %s (%s)", d.name, d.life, name, f.what, f.long)
	return f.what
}

// call does what a store does for the process, with what befalls it on the way.
func (d *daemon) call(ctx context.Context, name string, effect func() error) error {
	return d.do(ctx, name, errGone, func(trouble) error { return effect() })
}

func (d *daemon) do(ctx context.Context, name string, failed error, effect func(trouble) error) error {
	if ctx.Err() != nil {
		return context.Cause(ctx)
	}
	d.wait(latency)
	d.w.mu.Lock()
	what := trouble("")
	if name != "check" && name != "beat" {
		what = d.strike(name)
	}
	switch what {
	case killedBefore:
		d.kill(d.fault.long)
	case pausedBefore:
		d.paused = time.Now().Add(d.fault.long)
	case failsBefore:
		d.w.mu.Unlock()
		return failed
	default: // later, or nothing
	}
	d.w.mu.Unlock()
	d.wait(0)
	d.w.mu.Lock()
	if d.dead {
		d.w.mu.Unlock()
		return errKilled
	}
	err := effect(what)
	if name != "check" && name != "beat" {
		d.w.say("%s%d %s: %v", d.name, d.life, name, err)
	}
	switch what {
	case killedAfter:
		d.kill(d.fault.long)
	case pausedAfter:
		d.paused = time.Now().Add(d.fault.long)
	case failsAfter:
		err = failed
	default: // it has struck, or nothing does
	}
	d.w.mu.Unlock()
	d.wait(latency)
	d.w.mu.Lock()
	defer d.w.mu.Unlock()
	if d.dead {
		return errKilled
	}
	return err
}

// silent observes nothing.
type silent struct{}

func (silent) State(State, string)                                {}
func (silent) Leads(int64)                                        {}
func (silent) Received(int, int)                                  {}
func (silent) Progress(uint64, int64)                             {}
func (silent) InHand(int, int, int)                               {}
func (silent) Planned(*batch.Batch)                               {}
func (silent) Attempt(string, time.Duration)                      {}
func (silent) Found(int)                                          {}
func (silent) Settled(*batch.Batch, time.Duration, time.Duration) {}
func (silent) Slot(replication.SlotState, time.Time, time.Time)   {}
func (silent) Retry(Peer)                                         {}
func (silent) Incident(string)                                    {}
func (silent) Columns(int)                                        {}
func (silent) Trimmed(int64, int)                                 {}
