package main

import (
	"bufio"
	"bytes"
	"encoding/json"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/creack/pty"

	"github.com/sluicebox/sluicebox/internal/ledger"
)

func TestTail(t *testing.T) {
	t.Parallel()
	t.Run("shows each event once, as batches are delivered", func(t *testing.T) {
		t.Parallel()
		l := newLine(t)
		d := l.start(t)
		l.write(t, 20, 20)
		l.allMarked(t)
		r := l.follow(t, nil, "tail", "--json", "--last", "3")
		r.says(t, 3, "\n")
		const n = 1200 // more than a page
		l.exec(t, insertEvents, n/2)
		// Late months come in batches of their own, and ids out of the order of commits.
		tx, err := l.pg.Begin(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		defer func() { _ = tx.Rollback(t.Context()) }() // whatever the outcome, or the pool could not be closed
		if _, err := tx.Exec(t.Context(), insertEvents, 5); err != nil {
			t.Fatal(err)
		}
		l.exec(t, `INSERT INTO event_outbox (event_type, environment, event_context, event_date_time)
			SELECT 'late', 'test', '{}', now() - n * interval '31 days' FROM generate_series(1, 5) n`)
		l.exec(t, insertEvents, n/2)
		l.allMarked(t)
		if err := tx.Commit(t.Context()); err != nil {
			t.Fatal(err)
		}
		l.allMarked(t)
		d.kill(t)
		l.start(t)
		l.write(t, 7, 7)
		l.allMarked(t)
		const want = 3 + n + 5 + 5 + 7
		r.says(t, want, "\n")
		if code := r.stop(t); code != 0 {
			t.Errorf("code %d, want 0", code)
		}
		var ids []int64
		for document := range strings.SplitSeq(strings.TrimSpace(r.String()), "\n") {
			var e ledger.DeliveredEvent
			if err := json.Unmarshal([]byte(document), &e); err != nil {
				t.Fatalf("%v: %s", err, document)
			}
			ids = append(ids, e.ID)
		}
		slices.Sort(ids)
		if len(ids) != want || len(slices.Compact(slices.Clone(ids))) != want || ids[0] != 18 || ids[want-1] != 20+n+5+5+7 {
			t.Errorf("%d events, from %d to %d, want %d, each once", len(ids), ids[0], ids[len(ids)-1], want)
		}
	})
	t.Run("cuts events to the width of a terminal, and makes them harmless", func(t *testing.T) {
		t.Parallel()
		l := newLine(t)
		l.lead(t, "stream")
		l.exec(t, `INSERT INTO event_outbox (event_type, event_date_time, environment, event_context, processed)
			VALUES (E'user\x1b]0;gotcha\x07', '2026-11-28 05:00:00.123+00', 'test', jsonb_build_object('text', E'\u009b31m' || repeat('東', 50)), true)`)
		l.exec(t, `INSERT INTO sluicebox.batch
			(slot, seq, epoch, token, ids, rows, bytes, end_lsn, end_ordinal, ack_lsn, partition, sealed_by, state, marked)
			VALUES ($1, 1, 1, 't', '{[1,2)}', 1, 1, '0/0', 0, '0/0', 202611, 'rows', 'settled', 1)`, l.slot)
		r := l.follow(t, &pty.Winsize{Rows: 24, Cols: 62}, "tail")
		r.says(t, 1, "…")
		if code := r.stop(t); code != 0 {
			t.Errorf("code %d, want 0", code)
		}
		if want := "2026-11-28 05:00:00.123  1  user ]0;gotcha   {\"text\": \" 31m東…\r\n"; r.String() != want {
			t.Errorf("got  %q\nwant %q", r.String(), want)
		}
		r = l.follow(t, nil, "tail", "--json")
		r.says(t, 1, "\n")
		r.stop(t)
		if text := r.String(); !strings.Contains(text, `\u001b]0;gotcha\u0007`) || !strings.Contains(text, `"text":"\u009b31m東東`) {
			t.Errorf("%q", text)
		}
	})
	t.Run("shows only the types that are asked for", func(t *testing.T) {
		t.Parallel()
		l := newLine(t)
		l.start(t)
		l.write(t, 5, 5)
		l.exec(t, `INSERT INTO event_outbox (event_type, environment, event_context) VALUES ('a, b', 'test', '{}'), ('c', 'test', '{}'), ('d', 'test', '{}')`)
		l.allMarked(t)
		r := l.follow(t, nil, "tail", "--type", "a, b", "--type", "c")
		r.says(t, 2, "\n")
		r.stop(t)
		if text := r.String(); strings.Count(text, "\n") != 2 || !strings.Contains(text, "  6  a, b  {}\n") || !strings.Contains(text, "  7  c  {}\n") {
			t.Errorf("%s", text)
		}
	})
	t.Run("says that nobody delivers, and leaves out what is planned", func(t *testing.T) {
		t.Parallel()
		l := newLine(t)
		l.exec(t, `INSERT INTO sluicebox.stream (slot) VALUES ($1)`, l.slot)
		l.write(t, 3, 3)
		l.exec(t, `UPDATE event_outbox SET processed = true`)
		l.exec(t, `INSERT INTO sluicebox.batch
			(slot, seq, epoch, token, ids, rows, bytes, end_lsn, end_ordinal, ack_lsn, partition, sealed_by, state, marked)
			VALUES ($1, 1, 1, 't', '{[1,2)}', 1, 1, '0/0', 0, '0/0', 202611, 'rows', 'settled', 1),
			       ($1, 2, 1, 't', '{[2,3)}', 1, 1, '0/0', 0, '0/0', 202611, 'rows', 'planned', NULL),
			       ($1, 3, 1, 't', '{[3,4)}', 1, 1, '0/0', 0, '0/0', 202611, 'rows', 'settled', 1)`, l.slot)
		r := l.follow(t, nil, "tail", "--log-format", "console")
		r.says(t, 1, "no daemon leads")
		r.says(t, 1, "  1  thing has happened")
		if text := r.String(); strings.Contains(text, "  3  thing") {
			t.Errorf("it is ahead of a batch that is not settled:\n%s", text)
		}
		l.exec(t, `UPDATE sluicebox.batch SET state = 'settled', marked = 1 WHERE seq = 2`)
		r.says(t, 1, "  3  thing has happened")
		if text := r.String(); strings.Index(text, "  2  thing") > strings.Index(text, "  3  thing") || !strings.Contains(text, "  2  thing") {
			t.Errorf("%s", text)
		}
		l.exec(t, `INSERT INTO sluicebox.batch
			(slot, seq, epoch, token, ids, rows, bytes, end_lsn, end_ordinal, ack_lsn, partition, sealed_by, state, marked)
			VALUES ($1, 9, 1, 't', '{[1,2)}', 1, 1, '0/0', 0, '0/0', 202611, 'rows', 'settled', 1)`, l.slot)
		r.says(t, 1, "forgotten batches")
		r.stop(t)
	})
	t.Run("begins with nothing, or with all there is", func(t *testing.T) {
		t.Parallel()
		l := newLine(t)
		l.start(t)
		for range 3 {
			l.write(t, 4, 4)
			l.allMarked(t)
		}
		for _, last := range []int64{0, 1, 5, 10_000} {
			before := l.count(t, `SELECT count(*) FROM event_outbox`)
			r := l.follow(t, nil, "tail", "--json", "--last", fmt.Sprint(last))
			if last > 0 {
				r.says(t, int(min(last, before)), "\n") // then it has begun
			} else {
				l.observed(t)
			}
			l.write(t, 1, 1)
			r.says(t, 1, fmt.Sprintf(`{"id":%d,`, before+1))
			r.stop(t)
			if n := int64(strings.Count(r.String(), "\n")); n != min(last, before)+1 {
				t.Errorf("--last %d of %d shows %d events, want %d:\n%s", last, before, n, min(last, before)+1, r.String())
			}
		}
	})
}

// observed waits until an operator's session asks for batches.
func (l *line) observed(t *testing.T) {
	t.Helper()
	eventually(t, func() string {
		if l.count(t, `SELECT count(*) FROM pg_stat_activity WHERE application_name = 'cdc' AND datname = current_database() AND query LIKE '%ORDER BY seq LIMIT 1%'`) == 0 {
			return "nobody looks for batches"
		}
		return ""
	})
}

func TestFit(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		line    string
		columns int
		want    string
	}{
		{"short", 5, "short"},
		{"longer", 5, "long…"},
		{"東京", 4, "東京"},
		{"東京x", 4, "東…"},
		{"a東京", 4, "a東…"},
		{"e\u0301e\u0301", 2, "e\u0301e\u0301"},
		{"", 5, ""},
		{"ab", 1, "…"},
	} {
		if got := fit(c.line, c.columns); got != c.want {
			t.Errorf("fit(%q, %d) = %q, want %q", c.line, c.columns, got, c.want)
		}
	}
}

// TestPrintObject takes a context that is no JSON, and characters beyond 16 bits.
func TestPrintObject(t *testing.T) {
	t.Parallel()
	var text bytes.Buffer
	w := bufio.NewWriter(&text)
	e := ledger.DeliveredEvent{ID: 1, Type: "\u202ex\U000e0001<", Time: time.Unix(0, 0).UTC(), Context: json.RawMessage("no json")}
	if err := printObject(w, &e, 0); err != nil {
		t.Fatal(err)
	}
	if err := w.Flush(); err != nil {
		t.Fatal(err)
	}
	const want = `{"id":1,"event_type":"\u202ex\udb40\udc01<","event_date_time":"1970-01-01T00:00:00Z","environment":"","event_context":"no json",` +
		`"metadata_version":0,"trace_context":null,"processed_at":null}` + "\n"
	if text.String() != want {
		t.Errorf("got  %s\nwant %s", text.String(), want)
	}
}
