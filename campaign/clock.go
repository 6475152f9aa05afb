package main

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"time"
)

// clock is the wall clock of Postgres, which libfaketime moves. Its monotonic clock stays as it is.
type clock struct {
	library string
	file    string // holds the offset, and is read about once a second
}

// openClock finds libfaketime; "" as its library: it is not installed.
func openClock(folder string) (*clock, error) {
	for _, pattern := range []string{"/usr/lib/*/faketime/libfaketimeMT.so.1", "/usr/lib*/faketime/libfaketimeMT.so.1"} {
		if found, _ := filepath.Glob(pattern); len(found) > 0 {
			folder, err := filepath.Abs(folder)
			if err != nil {
				return nil, fmt.Errorf("open a clock: %w", err)
			}
			c := &clock{library: found[0], file: filepath.Join(folder, "clock")}
			return c, c.move(0)
		}
	}
	return nil, nil
}

// move sets how far the clock is from the real one.
func (c *clock) move(by time.Duration) error {
	const readable = 0o644 // Postgres runs as another user than root
	if err := os.WriteFile(c.file, fmt.Appendf(nil, "%+d\n", int64(by/time.Second)), readable); err != nil {
		return fmt.Errorf("move the clock: %w", err)
	}
	return nil
}

// environment has a program use the clock.
func (c *clock) environment() []string {
	if c == nil {
		return nil
	}
	return []string{
		"LD_PRELOAD=" + c.library, "FAKETIME_TIMESTAMP_FILE=" + c.file, "FAKETIME_CACHE_DURATION=1", "FAKETIME_DONT_FAKE_MONOTONIC=1", "NO_FAKE_STAT=1",
	}
}

// close removes the shared memory that programs have left which were killed.
func (c *clock) close() {
	if c == nil {
		return
	}
	found, _ := filepath.Glob("/dev/shm/*faketime_s*m_*")
	for _, path := range found {
		pid := path[strings.LastIndexByte(path, '_')+1:]
		if _, err := os.Stat("/proc/" + pid); err != nil {
			_ = os.Remove(path) // a courtesy
		}
	}
}
