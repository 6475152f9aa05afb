package main

import (
	"fmt"
	"math/rand/v2"
	"os"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"
)

// TestKilledAtEachStep kills the daemon with SIGKILL at each arrow of the line, and starts it again.
func TestKilledAtEachStep(t *testing.T) {
	t.Parallel()
	for _, point := range []string{
		"before-plan", "after-plan", "after-write", "after-settle", "before-ack", "after-ack", "slot-created", "backfill-batch:2", "backfill-ended",
	} {
		t.Run(point, func(t *testing.T) {
			t.Parallel()
			l := newLine(t)
			l.write(t, 300, 100) // for the backfill
			d := l.start(t, "SLUICEBOX_FAILPOINT="+point, "CDC_BATCH_MAX_ROWS=70")
			eventually(t, func() string { // give the stream something to die at
				select {
				case <-d.exited:
					return ""
				default:
					l.write(t, 10, 5)
					return "the daemon was not killed at " + point
				}
			})
			if status := d.cmd.ProcessState.Sys().(syscall.WaitStatus); !status.Signaled() || status.Signal() != syscall.SIGKILL {
				t.Fatalf("the daemon was not killed by its failpoint: %v", d.cmd.ProcessState)
			}
			l.write(t, 50, 10)
			l.start(t, "CDC_BATCH_MAX_ROWS=70")
			l.allMarked(t)
		})
	}
	t.Run("after-write, and the next start gathers otherwise", func(t *testing.T) {
		t.Parallel()
		l := newLine(t)
		d := l.start(t, "SLUICEBOX_FAILPOINT=after-write", "CDC_BATCH_MAX_ROWS=70")
		d.wait(t, `"message":"streaming"`)
		l.write(t, 100, 100)
		if code := d.end(t); code != -1 {
			t.Fatalf("exit code %d, want a kill", code)
		}
		l.start(t, "CDC_BATCH_MAX_ROWS=30")
		l.allMarked(t)
	})
	t.Run("in the middle of one transaction", func(t *testing.T) {
		t.Parallel()
		l := newLine(t)
		d := l.start(t, "SLUICEBOX_FAILPOINT=after-settle:5", "CDC_BATCH_MAX_ROWS=70")
		d.wait(t, `"message":"streaming"`)
		l.write(t, 1000, 1000)
		if code := d.end(t); code != -1 {
			t.Fatalf("exit code %d, want a kill", code)
		}
		if n := l.count(t, `SELECT count(*) FROM event_outbox WHERE processed`); n == 0 || n == 1000 {
			t.Fatalf("%d of 1000 events were settled; the test wants some", n)
		}
		l.start(t, "CDC_BATCH_MAX_ROWS=70") // is sent the whole transaction again
		l.allMarked(t)
	})
	t.Run("again while it recovers", func(t *testing.T) {
		t.Parallel()
		l := newLine(t)
		l.write(t, 50, 10)
		for _, point := range []string{"after-plan", "replanned", "replanned", "after-write"} {
			if code := l.start(t, "SLUICEBOX_FAILPOINT="+point).end(t); code != -1 {
				t.Fatalf("exit code %d, want a kill at %s", code, point)
			}
			l.nothingTwice(t)
		}
		l.start(t)
		l.allMarked(t)
	})
}

// TestKilledAtRandom kills the daemon with SIGKILL at random moments under load. TEST_KILLS sets how often.
func TestKilledAtRandom(t *testing.T) {
	t.Parallel()
	kills := 8
	if n, err := strconv.Atoi(os.Getenv("TEST_KILLS")); err == nil {
		kills = n
	}
	seed := uint64(time.Now().UnixNano())
	t.Logf("seed %d", seed)
	random := rand.New(rand.NewPCG(seed, 0))

	l := newLine(t)
	stop := l.keepWriting(t, 50)
	for range kills {
		d := l.start(t, "CDC_BATCH_MAX_ROWS=500", "CDC_BATCH_MAX_DELAY=20ms")
		select {
		case <-time.After(time.Duration(random.IntN(1500)) * time.Millisecond):
		case <-d.exited:
			t.Fatalf("cdc ended by itself:\n%s", d.text())
		}
		d.kill(t)
		l.nothingTwice(t)
	}
	stop()
	l.start(t)
	l.allMarked(t)
	t.Logf("%d kills, %d events", kills, l.count(t, `SELECT count(*) FROM event_outbox`))
}

// nothingTwice holds the promise of a plain SELECT at this moment.
func (l *line) nothingTwice(t *testing.T) {
	t.Helper()
	var rows, ids uint64
	if err := l.ch.QueryRow(t.Context(), `SELECT count(), uniqExact(id) FROM event_log`).Scan(&rows, &ids); err != nil {
		t.Fatal(err)
	}
	if rows != ids {
		t.Fatalf("ClickHouse has %d rows of %d events", rows, ids)
	}
}

func TestTakeover(t *testing.T) {
	t.Parallel()
	t.Run("a standby waits, and takes over when the leader is killed", func(t *testing.T) {
		t.Parallel()
		l := newLine(t)
		first := l.start(t)
		first.wait(t, `"message":"streaming"`)
		second := l.start(t)
		second.wait(t, "standing by")
		eventually(t, func() string {
			if code, body := second.get(t, "/readyz"); code != 200 {
				return "a standby is not ready: " + body
			}
			return ""
		})
		l.write(t, 100, 10)
		l.allMarked(t)
		first.kill(t)
		l.write(t, 100, 10)
		l.allMarked(t)
		second.wait(t, `"message":"streaming"`)
	})
	t.Run("a paused leader is replaced, writes nothing when it wakes, and ends with code 4", func(t *testing.T) {
		t.Parallel()
		l := newLine(t)
		first := l.start(t, "CDC_TAKEOVER_AFTER=3s")
		first.wait(t, `"message":"streaming"`)
		l.write(t, 100, 10)
		if err := first.cmd.Process.Signal(syscall.SIGSTOP); err != nil {
			t.Fatal(err)
		}
		l.write(t, 100, 10)
		l.start(t, "CDC_TAKEOVER_AFTER=3s").wait(t, `"message":"streaming"`)
		l.allMarked(t)
		if err := first.cmd.Process.Signal(syscall.SIGCONT); err != nil {
			t.Fatal(err)
		}
		if code := first.end(t); code != 4 {
			t.Errorf("exit code of the old leader is %d, want 4", code)
		}
		l.write(t, 100, 10)
		l.allMarked(t)
	})
	for _, point := range []string{
		"before-plan", "after-plan", "after-write", "after-settle", "before-ack", "after-ack", "slot-created", "backfill-batch", "backfill-ended",
	} {
		t.Run("a leader that is paused "+point+" is replaced, and what it does when it wakes stays without effect", func(t *testing.T) {
			t.Parallel()
			l := newLine(t)
			l.write(t, 100, 10) // for the backfill
			first := l.start(t, "CDC_TAKEOVER_AFTER=3s", "SLUICEBOX_FAILPOINT="+point, "SLUICEBOX_FAILPOINT_STOP=1")
			eventually(t, func() string {
				if stopped(t, first) {
					return ""
				}
				l.write(t, 10, 5)
				return "the daemon did not stop " + point
			})
			l.write(t, 100, 10)
			l.start(t, "CDC_TAKEOVER_AFTER=3s").wait(t, `"message":"streaming"`)
			l.allMarked(t)
			if err := first.cmd.Process.Signal(syscall.SIGCONT); err != nil {
				t.Fatal(err)
			}
			if code := first.end(t); code != 4 {
				t.Errorf("exit code of the old leader is %d, want 4", code)
			}
			l.write(t, 100, 10)
			l.allMarked(t)
		})
	}
	t.Run("a slot that another program reads is waited for", func(t *testing.T) {
		t.Parallel()
		l := newLine(t)
		d := l.start(t)
		d.wait(t, `"message":"streaming"`)
		l.write(t, 10, 10)
		l.allMarked(t)
		d.stop(t)
		l.notRead(t)
		reader := l.readSlot(t)
		d = l.start(t)
		d.wait(t, "standing by")
		reader()
		l.write(t, 10, 10)
		l.allMarked(t)
	})
}

// stopped says whether the process of a daemon is stopped by a signal.
func stopped(t *testing.T, d *daemon) bool {
	t.Helper()
	stat, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", d.cmd.Process.Pid))
	if err != nil {
		t.Fatal(err)
	}
	return strings.Contains(string(stat), ") T ")
}
