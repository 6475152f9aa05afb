package main

import (
	"context"
	"fmt"
	"path/filepath"
	"sync"
	"syscall"
	"time"
)

// seat keeps one program running, as systemd or Kubernetes would: whenever it ends, it is started again.
type seat struct {
	s        *stage
	name     string
	program  string
	args     []string
	settings func() []string

	mu      sync.Mutex
	wanted  bool
	more    []string // settings of the next start alone
	current *process
	change  chan struct{} // holds one when wanted or more has changed
}

func (s *stage) seat(name, program string, args []string, settings func() []string) *seat {
	return &seat{s: s, name: name, program: program, args: args, settings: settings, change: make(chan struct{}, 1)}
}

// keep starts the program whenever it is wanted and does not run, until ctx is done.
func (t *seat) keep(ctx context.Context) {
	for {
		if p := t.start(ctx); p != nil {
			select {
			case <-p.exited:
				t.judge(p)
			case <-ctx.Done():
				p.signal(syscall.SIGKILL)
				<-p.exited
				return
			}
		}
		const pause = 200 * time.Millisecond
		timer := time.NewTimer(pause)
		select {
		case <-ctx.Done():
			timer.Stop()
			return
		case <-t.change:
		case <-timer.C:
		}
		timer.Stop()
	}
}

func (t *seat) start(ctx context.Context) *process {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.current = nil
	if !t.wanted {
		return nil
	}
	settings := append(t.settings(), t.more...)
	t.more = nil
	p, err := launch(ctx, t.name, filepath.Join(t.s.o.logs, t.program), t.args, settings, t.s.o.logs, t.s.inspect)
	if err != nil {
		t.s.violate(err.Error())
		return nil
	}
	t.current = p
	return p
}

// judge holds that a program ended as it may. Codes are those that the README lists.
func (t *seat) judge(p *process) {
	t.s.tell(fmt.Sprintf("%s pid %d ended with code %d", t.name, p.cmd.Process.Pid, p.code))
	switch {
	case p.asked.Load(), p.code == 0:
	case p.code == 4: // another daemon took over
	case p.code == 3 && t.s.denied.Load() > 0:
	default:
		t.s.violate(fmt.Sprintf("exit: %s pid %d ended by itself with code %d", t.name, p.cmd.Process.Pid, p.code))
	}
}

// want starts the program, or ends it with SIGTERM.
func (t *seat) want(wanted bool) {
	t.mu.Lock()
	t.wanted = wanted
	p := t.current
	t.mu.Unlock()
	if !wanted && p != nil {
		p.signal(syscall.SIGTERM)
		p.signal(syscall.SIGCONT)
	}
	select {
	case t.change <- struct{}{}:
	default:
	}
}

// next gives the next start more settings.
func (t *seat) next(settings ...string) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.more = settings
}

func (t *seat) process() *process {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.current
}

func (t *seat) url() string {
	if p := t.process(); p != nil {
		if url := p.url.Load(); url != nil {
			return *url
		}
	}
	return ""
}

// end ends the program with a signal and waits until it has ended. The seat starts it again, if it is wanted.
func (t *seat) end(ctx context.Context, signal syscall.Signal) {
	p := t.process()
	if p == nil {
		return
	}
	p.signal(signal)
	p.signal(syscall.SIGCONT)
	const patience = 15 * time.Second
	timer := time.NewTimer(patience)
	defer timer.Stop()
	select {
	case <-p.exited:
	case <-ctx.Done():
	case <-timer.C:
		if signal == syscall.SIGTERM {
			t.s.violate(fmt.Sprintf("stop: %s pid %d did not end within %s of SIGTERM", t.name, p.cmd.Process.Pid, patience))
		}
		p.signal(syscall.SIGKILL)
	}
}
