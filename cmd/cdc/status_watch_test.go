package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"io"
	"os"
	"strings"
	"sync"
	"syscall"
	"testing"

	"github.com/creack/pty"
)

// written is what a command has written so far.
type written struct {
	mu   sync.Mutex
	text bytes.Buffer
}

func (s *written) Write(p []byte) (int, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.text.Write(p)
}

func (s *written) String() string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.text.String()
}

// running is a command that goes on until it is told to stop.
type running struct {
	written
	stop func(t *testing.T) (code int)
}

// follow starts a command of an operator on a pipe, or on a terminal of a size.
func (l *line) follow(t *testing.T, terminal *pty.Winsize, args ...string) *running {
	t.Helper()
	r := &running{}
	cmd := l.operator(t, args...)
	ended := make(chan error, 1)
	if terminal == nil {
		cmd.Stdout, cmd.Stderr = &r.written, &r.written
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		go func() { ended <- cmd.Wait() }()
	} else {
		screen, err := pty.StartWithSize(cmd, terminal)
		if err != nil {
			t.Fatal(err)
		}
		go func() {
			_, _ = io.Copy(&r.written, screen) // fails when the command has ended
			_ = screen.Close()
			ended <- cmd.Wait()
		}()
	}
	r.stop = func(t *testing.T) int {
		t.Helper()
		if err := cmd.Process.Signal(os.Interrupt); err != nil {
			t.Fatal(err)
		}
		if err := <-ended; err != nil && cmd.ProcessState == nil {
			t.Fatal(err)
		}
		return cmd.ProcessState.ExitCode()
	}
	t.Cleanup(func() { _ = cmd.Process.Signal(syscall.SIGKILL) })
	return r
}

// says waits until it has written a text so many times.
func (r *running) says(t *testing.T, n int, text string) {
	t.Helper()
	eventually(t, func() string {
		if strings.Count(r.String(), text) >= n {
			return ""
		}
		return "it has not written " + text + ":\n" + r.String()
	})
}

func TestStatusWatch(t *testing.T) {
	t.Parallel()
	t.Run("a terminal is drawn over, and left as it was", func(t *testing.T) {
		t.Parallel()
		l := newLine(t)
		r := l.follow(t, &pty.Winsize{Rows: 8, Cols: 80}, "status", "--watch", "--interval", "200ms")
		r.says(t, 3, toTop+"\x1b[33mno daemon has ever led "+l.slot)
		l.lead(t, "stream")
		r.says(t, 1, "the slot is missing")
		if code := r.stop(t); code != 0 {
			t.Errorf("code %d, want 0:\n%q", code, r.String())
		}
		text := r.String()
		if strings.Count(text, enterScreen) != 1 || !strings.HasPrefix(text, enterScreen) {
			t.Errorf("it does not begin on the other screen, or goes there again:\n%q", text)
		}
		_, after, left := strings.Cut(text, leaveScreen)
		if !left || !strings.Contains(after, "the slot is missing") || !strings.Contains(after, "incidents") {
			t.Errorf("it does not leave the newest look on the first screen:\n%q", after)
		}
		frame := strings.Split(strings.TrimPrefix(text, enterScreen), toTop)[1]
		if n := strings.Count(frame, "\n"); n > 7 {
			t.Errorf("%d lines for a terminal of 8:\n%q", n+1, frame)
		}
	})
	t.Run("elsewhere one look follows the other", func(t *testing.T) {
		t.Parallel()
		l := newLine(t)
		r := l.follow(t, nil, "status", "--watch", "--interval", "200ms")
		r.says(t, 3, "no daemon has ever led "+l.slot)
		if code := r.stop(t); code != 0 {
			t.Errorf("code %d, want 0:\n%s", code, r.String())
		}
		if text := r.String(); strings.Contains(text, "\x1b") || !strings.Contains(text, "\n\nno daemon has ever led") {
			t.Errorf("%q", text)
		}
	})
	t.Run("JSON is one document a line", func(t *testing.T) {
		t.Parallel()
		l := newLine(t)
		r := l.follow(t, nil, "status", "--watch", "--json", "--interval", "200ms")
		r.says(t, 3, "\n")
		if code := r.stop(t); code != 0 {
			t.Errorf("code %d, want 0:\n%s", code, r.String())
		}
		for document := range strings.SplitSeq(strings.TrimSpace(r.String()), "\n") {
			var s struct{ Slot string }
			if err := json.Unmarshal([]byte(document), &s); err != nil || s.Slot != l.slot {
				t.Errorf("%v: %s", err, document)
			}
		}
	})
	t.Run("a first look that fails ends it", func(t *testing.T) {
		t.Parallel()
		l := newLine(t)
		l.exec(t, `DROP SCHEMA sluicebox CASCADE`)
		l.operate(t, "status", "--watch").want(t, 3, "run `cdc migrate`")
	})
}

// TestWatchGoesOn has looks fail between others that do not.
func TestWatchGoesOn(t *testing.T) {
	t.Parallel()
	screen, terminal, err := pty.Open()
	if err != nil {
		t.Fatal(err)
	}
	var r written
	copied := make(chan struct{})
	go func() {
		defer close(copied)
		_, _ = io.Copy(&r, screen) // fails when the other end is closed
	}()
	ctx, cancel := context.WithCancel(t.Context())
	looks := 0
	err = watch(ctx, terminal, 1, false, func(context.Context) (string, error) {
		looks++
		switch looks {
		case 2:
			return "", errors.New("Postgres is \x1b]0;away")
		case 3:
			return "third\n", nil
		case 4:
			cancel()
		}
		return "first\n", nil
	})
	if !errors.Is(err, context.Canceled) {
		t.Error(err)
	}
	_ = terminal.Close()
	<-copied
	_ = screen.Close()
	text := r.String()
	if !strings.Contains(text, "UTC: Postgres is  ]0;away") || !strings.Contains(text, "before that:") {
		t.Errorf("the error is not shown: %q", text)
	}
	if strings.Index(text, "third") < strings.Index(text, "away") {
		t.Errorf("it does not go on: %q", text)
	}
	if !strings.HasSuffix(text, leaveScreen+"third\r\n") {
		t.Errorf("it does not end with the newest look: %q", text)
	}
}
