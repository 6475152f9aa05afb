package decode

import (
	"errors"
	"testing"
	"time"

	"github.com/jackc/pgx/v5/pgtype"

	"github.com/sluicebox/sluicebox/outbox"
)

// announced are the columns of migrations/postgres.
func announced() []Column {
	return []Column{
		{"id", pgtype.Int8OID},
		{"event_type", pgtype.TextOID},
		{"event_date_time", pgtype.TimestamptzOID},
		{"environment", pgtype.TextOID},
		{"event_context", pgtype.JSONBOID},
		{"metadata_version", pgtype.Int4OID},
		{"trace_context", pgtype.TextOID},
		{"processed", pgtype.BoolOID},
		{"processed_at", pgtype.TimestamptzOID},
	}
}

func TestLayout(t *testing.T) {
	t.Parallel()
	var table *TableError
	for i, column := range announced()[:6] {
		without := append(announced()[:i], announced()[i+1:]...)
		if _, err := NewLayout("t", without); !errors.As(err, &table) || table.Problem != "column "+column.Name+" is missing" {
			t.Errorf("without %s: %v", column.Name, err)
		}
	}
	if _, err := NewLayout("t", announced()[:6]); err != nil {
		t.Errorf("without trace_context and marks: %v", err)
	}
	for name, bad := range map[string]uint32{
		"id": pgtype.UUIDOID, "event_date_time": pgtype.TimestampOID, "metadata_version": pgtype.TextOID,
	} {
		columns := announced()
		for i := range columns {
			if columns[i].Name == name {
				columns[i].Type = bad
			}
		}
		if _, err := NewLayout("t", columns); !errors.As(err, &table) {
			t.Errorf("%s of type %d: %v, want a TableError: its texts can't be read", name, bad, err)
		}
	}
}

func TestRow(t *testing.T) {
	t.Parallel()
	layout, err := NewLayout("t", announced())
	if err != nil {
		t.Fatal(err)
	}
	texts := func() [][]byte {
		return [][]byte{
			[]byte("7"), []byte("x"), []byte("2026-01-02 03:04:05+00"), []byte("test"), []byte("{}"), []byte("1"), nil, []byte("f"), nil,
		}
	}
	for i, column := range announced()[1:6] {
		values := texts()
		values[i+1] = nil
		var row outbox.Row
		if err := layout.Row(values, &row); err != nil || row.ID != 7 || row.Invalid != "column "+column.Name+" is null" {
			t.Errorf("%s is null: %+v, %v", column.Name, row, err)
		}
	}
	values := texts()
	values[5] = []byte("2147483648")
	var row outbox.Row
	if err := layout.Row(values, &row); err != nil || row.Invalid == "" {
		t.Errorf("metadata_version of 33 bits: %+v, %v; want it invalid", row, err)
	}
	if err := layout.Row(texts()[1:], &row); err == nil {
		t.Error("a row of fewer columns than the table gave no error")
	}
}

func TestParseTime(t *testing.T) {
	t.Parallel()
	for text, want := range map[string]time.Time{
		"2026-01-02 03:04:05+00":        time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC),
		"2026-01-02 03:04:05.6+00":      time.Date(2026, 1, 2, 3, 4, 5, 600000000, time.UTC),
		"2026-01-02 03:04:05.678901+00": time.Date(2026, 1, 2, 3, 4, 5, 678901000, time.UTC),
		"0001-01-01 00:00:00+00":        time.Date(1, 1, 1, 0, 0, 0, 0, time.UTC),
		"9999-12-31 23:59:59.999999+00": time.Date(9999, 12, 31, 23, 59, 59, 999999000, time.UTC),
	} {
		if got, invalid := parseTime([]byte(text)); invalid != "" || !got.Equal(want) {
			t.Errorf("%s: got %s, %q", text, got, invalid)
		}
	}
	for _, text := range []string{
		"", "infinity", "-infinity", "4713-01-01 00:00:00+00 BC", "0044-03-15 12:00:00+00 BC", "10000-01-01 00:00:00+00", "294276-12-31 23:59:59+00",
		"2026-01-02 03:04:05+01", "2026-01-02 03:04:05", "2026-13-02 03:04:05+00", "2026-02-30 03:04:05+00", "2026-01-02T03:04:05+00",
		"2026-01-02 24:00:00+00", "2026-01-02 03:60:05+00", "2026-01-02 03:04:60+00",
	} {
		if got, invalid := parseTime([]byte(text)); invalid == "" {
			t.Errorf("%q: got %s, want a reason why it can't be held", text, got)
		}
	}
}
