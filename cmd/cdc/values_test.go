package main

import (
	"errors"
	"fmt"
	"os"
	"slices"
	"strings"
	"testing"
	"unicode"

	"github.com/google/go-cmp/cmp"
	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
)

// TestValues writes each value of docs/values.md before the first start of the daemon, so that it comes by backfill, and once
// more while it streams, so that it comes through the WAL. Both ways must end alike, over both protocols of ClickHouse.
func TestValues(t *testing.T) {
	t.Parallel()
	table := valueTable()
	t.Run("Postgres refuses", func(t *testing.T) {
		t.Parallel()
		l := newLine(t)
		each(table, "", func(w *writtenValue) {
			if w.refused == "" {
				return
			}
			err := l.writeValue(t, w)
			if answer := new(pgconn.PgError); !errors.As(err, &answer) || answer.Code != w.refused {
				t.Errorf("%s: %v; want SQLSTATE %s", w.name(), err, w.refused)
			}
		})
	})
	t.Run("native", func(t *testing.T) {
		t.Parallel()
		l := newLine(t)
		l.carriesValues(t, table)
	})
	t.Run("HTTP", func(t *testing.T) {
		t.Parallel()
		l := newLine(t)
		l.extra = append(l.extra, "CLICKHOUSE_URL="+l.db.WarehouseHTTP)
		l.carriesValues(t, table)
	})
}

func (l *line) carriesValues(t *testing.T, table []column) {
	t.Helper()
	var written []*writtenValue
	write := func(way string) {
		each(table, way, func(w *writtenValue) {
			if w.refused != "" {
				return
			}
			if err := l.writeValue(t, w); err != nil {
				t.Errorf("%s: %v", w.name(), err)
				return
			}
			written = append(written, w)
		})
	}
	write("backfill")
	l.start(t).wait(t, `"message":"streaming"`)
	write("stream")
	eventually(t, func() string {
		n := l.count(t, `SELECT count(*) FROM event_outbox o
			WHERE NOT processed AND NOT EXISTS (SELECT FROM sluicebox.quarantine q WHERE q.id = o.id)`)
		if n > 0 {
			return fmt.Sprintf("%d events are neither delivered nor in quarantine", n)
		}
		return ""
	})
	got := l.arrivals(t)
	for _, w := range written {
		t.Run(w.name(), func(t *testing.T) { w.check(t, got) })
	}
	if !t.Failed() { // comparing differing texts of 50 MB would take long, and the difference was shown by then
		l.same(t)
	}
}

// writtenValue is a value that is written beside an ordinary neighbour, in one transaction.
type writtenValue struct {
	value
	way           string // by which it comes: backfill or stream
	column        string
	id, neighbour uint64
}

func (w *writtenValue) name() string {
	return strings.TrimSpace(w.way + " " + w.column + " " + shown(w.sql))
}

// each calls do with every value of the table.
func each(table []column, way string, do func(*writtenValue)) {
	for _, c := range table {
		for _, v := range c.values {
			do(&writtenValue{value: v, way: way, column: c.name})
		}
	}
}

// writeValue commits the value and its neighbour, and looks at what Postgres makes of it.
func (l *line) writeValue(t *testing.T, w *writtenValue) error {
	t.Helper()
	columns := []string{"event_type", "environment", "event_context"}
	values := []string{`'value'`, `'test'`, `'{}'`}
	if i := slices.Index(columns, w.column); i >= 0 {
		values[i] = w.sql
	} else {
		columns, values = append(columns, w.column), append(values, w.sql)
	}
	return pgx.BeginFunc(t.Context(), l.pg, func(tx pgx.Tx) error {
		insert := `INSERT INTO event_outbox (` + strings.Join(columns, ", ") + `) VALUES (` + strings.Join(values, ", ") + `) RETURNING id`
		if err := tx.QueryRow(t.Context(), insert).Scan(&w.id); err != nil {
			return err
		}
		text := w.column + `::text`
		if w.column == "event_date_time" {
			text = `(event_date_time AT TIME ZONE 'UTC')::text`
		}
		var kept *string
		if err := tx.QueryRow(t.Context(), `SELECT `+text+` FROM event_outbox WHERE id = $1`, w.id).Scan(&kept); err != nil {
			return err
		}
		if kept == nil {
			kept = new(string)
		}
		if *kept != w.kept {
			t.Errorf("%s: Postgres keeps %s, want %s", w.name(), shown(*kept), shown(w.kept))
		}
		return tx.QueryRow(t.Context(), `INSERT INTO event_outbox (event_type, environment, event_context)
			VALUES ('neighbour', 'test', '{}') RETURNING id`).Scan(&w.neighbour)
	})
}

// arrival is what became of one event.
type arrival struct {
	rows    int               // in ClickHouse
	ordinal uint32            // 0: it came by backfill
	columns map[string]string // of the outbox, as texts
	reason  string            // in quarantine; empty: it is not there
}

// arrivals reads both ends of the line.
func (l *line) arrivals(t *testing.T) map[uint64]arrival {
	t.Helper()
	got := map[uint64]arrival{}
	rows, err := l.ch.Query(t.Context(), `
SELECT id, ordinal, event_type, environment, event_context, toString(metadata_version), trace_id, toString(event_date_time) FROM event_log`)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = rows.Close() }()
	for rows.Next() {
		var id uint64
		var a arrival
		var kind, environment, context, version, trace, at string
		if err := rows.Scan(&id, &a.ordinal, &kind, &environment, &context, &version, &trace, &at); err != nil {
			t.Fatal(err)
		}
		a.rows = got[id].rows + 1
		a.columns = map[string]string{
			"event_type": kind, "environment": environment, "event_context": context, "metadata_version": version,
			"trace_context": trace, "event_date_time": at,
		}
		got[id] = a
	}
	if err := rows.Err(); err != nil {
		t.Fatal(err)
	}
	quarantine, err := l.pg.Query(t.Context(), `SELECT id, reason FROM sluicebox.quarantine`)
	if err != nil {
		t.Fatal(err)
	}
	defer quarantine.Close()
	for quarantine.Next() {
		var id uint64
		var reason string
		if err := quarantine.Scan(&id, &reason); err != nil {
			t.Fatal(err)
		}
		a := got[id]
		a.reason = reason
		got[id] = a
	}
	if err := quarantine.Err(); err != nil {
		t.Fatal(err)
	}
	return got
}

func (w *writtenValue) check(t *testing.T, got map[uint64]arrival) {
	t.Helper()
	if n := got[w.neighbour].rows; n != 1 {
		t.Errorf("its neighbour is in ClickHouse %d times", n)
	}
	a := got[w.id]
	if w.aside {
		if a.rows != 0 || !strings.HasPrefix(a.reason, w.column+" is ") {
			t.Errorf("it is in ClickHouse %d times, in quarantine for %q; want it there, for %s", a.rows, a.reason, w.column)
		}
		return
	}
	if a.rows != 1 || a.reason != "" {
		t.Fatalf("it is in ClickHouse %d times, in quarantine for %q; want it delivered", a.rows, a.reason)
	}
	if holds := a.columns[w.column]; holds != w.holds {
		t.Errorf("ClickHouse holds %s, want %s", shown(holds), shown(w.holds))
	}
	if (a.ordinal == 0) != (w.way == "backfill") {
		t.Errorf("ordinal %d: it did not come by the %s", a.ordinal, w.way)
	}
}

// TestValuesAreDocumented keeps docs/values.md and the rows that are tested the same.
func TestValuesAreDocumented(t *testing.T) {
	t.Parallel()
	doc, err := os.ReadFile("../../docs/values.md")
	if err != nil {
		t.Fatal(err)
	}
	want := map[string]string{}
	for _, c := range valueTable() {
		want[c.name] = c.markdown()
	}
	got := map[string]string{}
	section := ""
	for line := range strings.Lines(string(doc)) {
		if name, ok := strings.CutPrefix(line, "## "); ok {
			section = strings.TrimSpace(name)
		}
		if strings.HasPrefix(line, "|") {
			got[section] += line
		}
	}
	if diff := cmp.Diff(want, got); diff != "" {
		for name, table := range want {
			if got[name] != table {
				t.Logf("table of section %s:\n%s", name, table)
			}
		}
		t.Errorf("docs/values.md is not what is tested (-tested +documented):\n%s", diff)
	}
}

// markdown writes the table of a column.
func (c column) markdown() string {
	var b strings.Builder
	fmt.Fprintf(&b, "| SQL | Postgres keeps | ClickHouse, `%s` |\n|---|---|---|\n", c.target)
	for _, v := range c.values {
		kept, holds := code(v.kept), code(v.holds)
		switch {
		case v.refused != "":
			kept, holds = "refused: SQLSTATE "+v.refused, "—"
		case v.aside:
			holds = "quarantine"
		case v.kept == v.holds:
			holds = "the same"
		}
		fmt.Fprintf(&b, "| %s | %s | %s |\n", code(v.sql), kept, holds)
	}
	return b.String()
}

// code writes a text as a cell of a table.
func code(text string) string {
	if text == "" {
		return "nothing"
	}
	return "`" + strings.ReplaceAll(shown(text), "|", `\|`) + "`" // Markdown takes the backslash away, in code too
}

// shown is a text for people: of a long one the beginning, and ⟨U+…⟩ for what can't be seen.
func shown(text string) string {
	const longest, beginning = 120, 24
	var b strings.Builder
	end := ""
	if len(text) > longest {
		end = fmt.Sprintf("… (%d bytes)", len(text))
		text = strings.ToValidUTF8(text[:beginning], "")
	}
	for _, r := range text {
		if unicode.IsPrint(r) || r == '\u200d' { // which joins emoji
			b.WriteRune(r)
		} else {
			fmt.Fprintf(&b, "⟨U+%04X⟩", r)
		}
	}
	return b.String() + end
}
