package main

import (
	"os"
	"path/filepath"
	"testing"
)

// TestDamagedPart holds what docs/situations.md tells operators to do when a merge has left a part of empty files, as it does if it meets a full
// disk. Here its files are emptied.
func TestDamagedPart(t *testing.T) {
	t.Parallel()
	l, _ := newOwnSinkLine(t)
	d := l.start(t)
	for range 5 { // parts
		l.write(t, 20, 20)
		l.allMarked(t)
	}
	d.stop(t)
	ask := func(sql string) {
		t.Helper()
		if err := l.ch.Exec(t.Context(), sql); err != nil {
			t.Fatalf("%s: %v", sql, err)
		}
	}
	ask(`OPTIMIZE TABLE event_log FINAL`)
	var path string
	if err := l.ch.QueryRow(t.Context(), `SELECT path FROM system.parts WHERE active AND table = 'event_log'`).Scan(&path); err != nil {
		t.Fatal(err)
	}
	files, err := filepath.Glob(path + "*")
	if err != nil || len(files) == 0 {
		t.Fatalf("%s has %d files: %v", path, len(files), err)
	}
	for _, file := range files {
		if err := os.Truncate(file, 0); err != nil {
			t.Fatal(err)
		}
	}
	d = l.start(t)
	l.write(t, 20, 20)
	d.wait(t, "a part of the table is damaged")
	ask(`DETACH TABLE event_log`)
	ask(`ATTACH TABLE event_log`)
	l.allMarked(t)
}
