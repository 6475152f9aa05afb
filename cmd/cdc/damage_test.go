package main

import (
	"io/fs"
	"os"
	"path/filepath"
	"strings"
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
	l.execClickHouse(t, `OPTIMIZE TABLE event_log FINAL`)
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
	l.execClickHouse(t, `DETACH TABLE event_log`)
	l.execClickHouse(t, `ATTACH TABLE event_log`)
	l.allMarked(t)
}

// TestLostDefinition holds that a daemon does not take the promise of a table for weaker when ClickHouse has lost the table's definition, and
// that what docs/situations.md says brings it back.
func TestLostDefinition(t *testing.T) {
	t.Parallel()
	l, server := newOwnSinkLine(t)
	d := l.start(t)
	l.write(t, 20, 20)
	l.allMarked(t)
	d.stop(t)
	var id, create string
	if err := l.ch.QueryRow(t.Context(), `SELECT extract(data_paths[1], '([^/]+)/$'), create_table_query FROM system.tables
WHERE database = currentDatabase() AND name = 'event_log'`).Scan(&id, &create); err != nil {
		t.Fatal(err)
	}
	removed := 0
	err := filepath.WalkDir(server.Dir, func(path string, entry fs.DirEntry, err error) error {
		if err != nil || entry.Name() != "event_log.sql" {
			return nil //nolint:nilerr // the server makes and removes files meanwhile
		}
		removed++
		return os.Remove(path)
	})
	if err != nil || removed == 0 {
		t.Fatalf("%d files removed: %v", removed, err)
	}
	d = l.start(t)
	l.write(t, 20, 20)
	d.wait(t, "ClickHouse does not tell how table event_log is defined")
	_, body, _ := strings.Cut(create, "event_log ")
	l.execClickHouse(t, `DETACH TABLE event_log`)
	l.execClickHouse(t, `ATTACH TABLE event_log UUID '`+id+`' `+body)
	l.allMarked(t)
	d.stop(t)
	if strings.Contains(d.text(), "no deduplication window") {
		t.Error("the table was taken for one without a deduplication window")
	}
}
