// Package decode makes rows of the outbox from the texts in which Postgres gives their columns. The stream and a query give the
// same texts, so that a row is the same event whichever way it came.
package decode

import (
	"bytes"
	"fmt"
	"slices"
	"strconv"

	"github.com/jackc/pgx/v5/pgtype"

	"github.com/sluicebox/sluicebox/outbox"
)

// Column is a column of the outbox as Postgres announces it.
type Column struct {
	Name string
	Type uint32 // OID
}

// TableError says that the outbox is not as events need it: a column is missing, or has a type that can't be read. Rows which are in
// the stream lack it for good, also when the column is back; only the table can tell then.
type TableError struct{ Table, Problem string }

func (e *TableError) Error() string { return "table " + e.Table + ": " + e.Problem }

// The columns that make an event.
const (
	colID = iota
	colType
	colTime
	colEnvironment
	colContext
	colVersion
	colTrace
	columns
)

type knownColumn struct {
	name  string
	types []uint32
}

// known gives each its name in Postgres, and the types whose texts can be read; none: all.
//
//nolint:gochecknoglobals // a constant table
var known = [columns]knownColumn{
	colID:          {"id", []uint32{pgtype.Int8OID, pgtype.Int4OID, pgtype.Int2OID}},
	colType:        {"event_type", nil},
	colTime:        {"event_date_time", []uint32{pgtype.TimestamptzOID}},
	colEnvironment: {"environment", nil},
	colContext:     {"event_context", nil},
	colVersion:     {"metadata_version", []uint32{pgtype.Int8OID, pgtype.Int4OID, pgtype.Int2OID}},
	colTrace:       {"trace_context", nil}, // the one that an outbox may lack
}

// Session is what a session must be set to, stream or not, for its texts to be those that are read here.
//
//nolint:gochecknoglobals // a constant table
var Session = map[string]string{
	"DateStyle": "ISO", "TimeZone": "UTC", "IntervalStyle": "postgres", "bytea_output": "hex", "extra_float_digits": "1",
}

// Layout knows which of a table's columns is which. It belongs to one goroutine.
type Layout struct {
	place []int             // of each column of the table: a known one; columns+i: more[i]; -1: not part of the event
	more  []string          // names of the columns that are carried along
	words map[string]string // event types and environments, so that each is allocated once
	block []byte            // where the next contexts go
}

// NewLayout finds the columns of an event by their names. The error is a [*TableError].
func NewLayout(table string, announced []Column) (*Layout, error) {
	l := &Layout{place: make([]int, len(announced)), words: map[string]string{}}
	var has [columns]bool
	for i, column := range announced {
		c := slices.IndexFunc(known[:], func(k knownColumn) bool { return k.name == column.Name })
		switch {
		case column.Name == "processed" || column.Name == "processed_at": // what delivery itself writes
			l.place[i] = -1
		case c < 0:
			l.place[i] = columns + len(l.more)
			l.more = append(l.more, column.Name)
		case len(known[c].types) > 0 && !slices.Contains(known[c].types, column.Type):
			return nil, &TableError{Table: table, Problem: "column " + column.Name + " has a type that can't be read as an event's"}
		default:
			l.place[i], has[c] = c, true
		}
	}
	for c := range known {
		if !has[c] && c != colTrace {
			return nil, &TableError{Table: table, Problem: "column " + known[c].name + " is missing"}
		}
	}
	return l, nil
}

// Columns is how many columns the table has.
func (l *Layout) Columns() int { return len(l.place) }

// Row fills row, but for its position, from the texts of all columns; nil is a null. The texts may be reused afterwards.
func (l *Layout) Row(texts [][]byte, row *outbox.Row) error {
	if len(texts) != len(l.place) {
		return fmt.Errorf("decode a row: it has %d columns, the table %d", len(texts), len(l.place))
	}
	var values [columns][]byte
	if len(l.more) > 0 {
		row.More = make([]outbox.Column, len(l.more))
	}
	for i, c := range l.place {
		switch {
		case c >= columns:
			row.More[c-columns] = outbox.Column{Name: l.more[c-columns], Text: bytes.Clone(texts[i])}
		case c >= 0:
			values[c] = texts[i]
		}
	}
	var err error
	if row.ID, err = strconv.ParseInt(string(values[colID]), 10, 64); err != nil {
		return fmt.Errorf("decode column id: %w", err)
	}
	for c, value := range values {
		if value == nil && c != colTrace {
			row.Invalid = "column " + known[c].name + " is null"
			return nil
		}
	}
	version, err := strconv.ParseInt(string(values[colVersion]), 10, 32)
	if err != nil {
		row.Invalid = fmt.Sprintf("metadata_version is %s; events have 32 bits of it", values[colVersion])
		return nil //nolint:nilerr // the row is at fault, and says so
	}
	row.MetadataVersion = int32(version)
	row.Type, row.Environment = l.word(values[colType]), l.word(values[colEnvironment])
	row.Context, row.TraceContext = l.keep(values[colContext]), string(values[colTrace])
	row.Time, row.Invalid = parseTime(values[colTime])
	return nil
}

// word returns a text that repeats from row to row without allocating it again.
func (l *Layout) word(text []byte) string {
	const most, longest = 4096, 256 // beyond these the texts do not repeat, and keeping them would only hold memory
	if len(text) > longest {
		return string(text)
	}
	if w, known := l.words[string(text)]; known {
		return w
	}
	if len(l.words) >= most {
		clear(l.words)
	}
	w := string(text)
	l.words[w] = w
	return w
}

// keep copies a text. Short ones share blocks, since one allocation a row is what the garbage collector would mostly work for; a row that
// is kept keeps a whole block, so long ones don't.
func (l *Layout) keep(text []byte) []byte {
	const size, longest = 64 << 10, 8 << 10
	if len(text) > longest {
		return bytes.Clone(text)
	}
	if len(l.block)+len(text) > cap(l.block) {
		l.block = make([]byte, 0, size)
	}
	from := len(l.block)
	l.block = append(l.block, text...)
	return l.block[from:len(l.block):len(l.block)]
}
