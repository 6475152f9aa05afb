package main

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"sync"
	"syscall"
	"time"
)

// killDaemons kills every daemon, all at once. Their seats start them again.
func (s *stage) killDaemons(ctx context.Context) {
	var all sync.WaitGroup
	for _, seat := range s.daemons {
		all.Go(func() { seat.end(ctx, syscall.SIGKILL) })
	}
	all.Wait()
}

func daemonFaults(o options) []fault {
	long := [2]time.Duration{5 * time.Second, 20 * time.Second}
	if o.duration >= 30*time.Minute {
		long[1] = 2 * time.Minute
	}
	end := func(signal syscall.Signal) injection {
		return func(ctx context.Context, s *stage, _ *rand.Rand) (func(context.Context) error, error) {
			leader := s.leader(ctx)
			if leader == nil {
				return nil, errNoLeader
			}
			leader.end(ctx, signal)
			return nil, nil
		}
	}
	faults := []fault{
		{name: "leader killed", group: "daemon", weight: 4, hold: brief(), inject: end(syscall.SIGKILL)},
		{name: "leader told to end", group: "daemon", weight: 2, hold: brief(), inject: end(syscall.SIGTERM)},
		{
			name: "all daemons killed", group: "daemon", weight: 2, hold: brief(),
			inject: func(ctx context.Context, s *stage, _ *rand.Rand) (func(context.Context) error, error) {
				s.killDaemons(ctx)
				return nil, nil
			},
		},
		{name: "leader paused, and replaced", group: "daemon", weight: 2, hold: [2]time.Duration{4 * time.Second, 7 * time.Second}, inject: pauseLeader},
		// In a group of its own: the others are broken meanwhile.
		{name: "leader paused for long, and replaced", group: "long pause", hold: long, inject: pauseLeader},
		{
			name: "one more daemon", group: "daemon", hold: medium(),
			inject: func(_ context.Context, s *stage, _ *rand.Rand) (func(context.Context) error, error) {
				s.daemons[2].want(true)
				return func(context.Context) error { s.daemons[2].want(false); return nil }, nil
			},
		},
	}
	for _, point := range []string{"before-plan", "after-plan", "after-write", "after-settle", "before-ack", "after-ack"} {
		faults = append(faults,
			fault{name: "killed at " + point, group: "daemon", weight: 2, hold: brief(), inject: killedAt("", point)},
			fault{name: "paused at " + point + ", and replaced", group: "daemon", hold: brief(), inject: pausedAt(point)})
	}
	return append(faults,
		fault{name: "killed at replanned", group: "daemon", hold: brief(), inject: killedAt("", "after-plan", "replanned", "replanned")},
		fault{name: "killed at slot-created", group: "daemon", hold: brief(), inject: damaging(killedAt(dropSlot, "slot-created"))},
		fault{name: "killed at backfill-batch", group: "daemon", hold: brief(), inject: damaging(killedAt(dropSlot, "backfill-batch"))},
		fault{name: "killed at backfill-ended", group: "daemon", hold: brief(), inject: damaging(killedAt(dropSlot, "backfill-ended"))},
	)
}

var errNoLeader = errors.New("nobody leads at the moment")

// single leaves one daemon, so that it is the one which leads, and returns its seat and what brings the others back.
func (s *stage) single(ctx context.Context) (*seat, func(context.Context) error) {
	other := s.daemons[1]
	other.want(false)
	other.end(ctx, syscall.SIGKILL)
	return s.daemons[0], func(context.Context) error {
		other.want(true)
		return nil
	}
}

// restart has the seat's daemon start anew with more settings, and returns its process.
func (t *seat) restart(ctx context.Context, settings ...string) (*process, error) {
	old := t.process()
	t.next(settings...)
	t.end(ctx, syscall.SIGKILL)
	var now *process
	if !poll(ctx, 10*time.Second, func() bool { now = t.process(); return now != nil && now != old }) {
		return nil, fmt.Errorf("%s is not started", t.name)
	}
	return now, nil
}

// reached is how long a daemon may take to come to a failpoint. Other faults may keep it from that.
const reached = 12 * time.Second

// killedAt has one daemon killed at each of some failpoints, one after the other. damage is a statement that comes before.
func killedAt(damage string, points ...string) injection {
	return func(ctx context.Context, s *stage, random *rand.Rand) (func(context.Context) error, error) {
		seat, heal := s.single(ctx)
		if damage != "" {
			if err := s.sql(ctx, damage); err != nil {
				return heal, err
			}
		}
		for _, point := range points {
			hits := 1
			if damage == "" && len(points) == 1 {
				hits += random.IntN(8)
			}
			p, err := seat.restart(ctx, fmt.Sprintf("SLUICEBOX_FAILPOINT=%s:%d", point, hits))
			if err != nil {
				return heal, err
			}
			p.asked.Store(true)
			if !poll(ctx, reached, p.ended) {
				p.signal(syscall.SIGKILL)
				return heal, fmt.Errorf("%s was not reached", point)
			}
			if p.code != -1 {
				return heal, fmt.Errorf("the daemon ended before it reached %s", point)
			}
		}
		return heal, nil
	}
}

// pausedAt stops a leader at a failpoint, lets another daemon take over, and wakes it.
func pausedAt(point string) injection {
	return func(ctx context.Context, s *stage, random *rand.Rand) (func(context.Context) error, error) {
		seat, heal := s.single(ctx)
		p, err := seat.restart(ctx, fmt.Sprintf("SLUICEBOX_FAILPOINT=%s:%d", point, 1+random.IntN(8)), "SLUICEBOX_FAILPOINT_STOP=1")
		if err != nil {
			return heal, err
		}
		if !poll(ctx, reached, func() bool { return p.stopped() || p.ended() }) || p.ended() {
			p.signal(syscall.SIGKILL)
			return heal, fmt.Errorf("%s was not reached", point)
		}
		return nil, errors.Join(heal(ctx), s.wake(ctx, p, reached))
	}
}

// pauseLeader stops the leader wherever it is, for longer than its lease lasts.
func pauseLeader(ctx context.Context, s *stage, _ *rand.Rand) (func(context.Context) error, error) {
	leader := s.leader(ctx)
	if leader == nil {
		return nil, errNoLeader
	}
	p := leader.process()
	if p == nil {
		return nil, errNoLeader
	}
	p.signal(syscall.SIGSTOP)
	return func(ctx context.Context) error {
		_ = s.wake(ctx, p, 0) // that nobody took over is the fault of other faults
		return nil
	}, nil
}

// wake lets a stopped leader go on once another one leads, or after patience. If another one does, it must end with code 4.
func (s *stage) wake(ctx context.Context, p *process, patience time.Duration) error {
	replaced := poll(ctx, patience, func() bool {
		leader := s.leader(ctx)
		return leader != nil && leader.process() != p
	})
	p.signal(syscall.SIGCONT)
	if !replaced {
		return errors.New("nobody took over")
	}
	const most = time.Minute // it must reach Postgres to learn of it
	if !poll(ctx, most, p.ended) {
		s.violate(fmt.Sprintf("fence: %s pid %d was replaced while it was paused, and has not ended a minute after it woke", p.name, p.cmd.Process.Pid))
		p.signal(syscall.SIGKILL)
	} else if p.code != 4 && !p.asked.Load() {
		s.violate(fmt.Sprintf("fence: %s pid %d was replaced while it was paused, and ended with code %d, not 4", p.name, p.cmd.Process.Pid, p.code))
	}
	return nil
}
