package replication

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"strconv"

	"github.com/jackc/pglogrepl"

	"github.com/sluicebox/sluicebox/outbox"
)

// The columns of the outbox, by their place in a decoded row.
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

// columnNames gives each column its name in Postgres. All but the last are required.
//
//nolint:gochecknoglobals // a constant table
var columnNames = [columns]string{
	colID: "id", colType: "event_type", colTime: "event_date_time", colEnvironment: "environment",
	colContext: "event_context", colVersion: "metadata_version", colTrace: "trace_context",
}

// decoder turns pgoutput messages into events. It belongs to one stream: relations and the open transaction are its state.
type decoder struct {
	schema, table string

	relation uint32              // OID of the outbox in this stream; 0: not announced yet
	place    map[uint16]int      // place in the tuple → column
	seen     map[uint32]struct{} // OIDs of other tables in the publication
	commit   uint64              // commit LSN of the open transaction; 0: none is open
	ordinal  uint32              // rows of the outbox so far in the open transaction
	words    map[string]string   // event types and environments, so that each is allocated once
}

func newDecoder(schema, table string) *decoder {
	return &decoder{schema: schema, table: table, seen: map[uint32]struct{}{}, words: map[string]string{}}
}

// decode reads one pgoutput message (protocol version 1). ok is false when the message carries nothing for the outbox.
// data may be reused once decode has returned.
func (d *decoder) decode(data []byte) (event Event, ok bool, err error) {
	if len(data) == 0 {
		return Event{}, false, errors.New("empty pgoutput message")
	}
	if data[0] == 'I' { // the hot path: everything else comes once a transaction at most
		return d.insert(data[1:])
	}
	message, err := pglogrepl.Parse(data)
	if err != nil {
		return Event{}, false, fmt.Errorf("decode pgoutput message %q: %w", data[0], err)
	}
	switch m := message.(type) {
	case *pglogrepl.BeginMessage:
		d.commit, d.ordinal = uint64(m.FinalLSN), 0
	case *pglogrepl.CommitMessage:
		if d.commit != uint64(m.CommitLSN) {
			return Event{}, false, fmt.Errorf("commit %s ends a transaction that began for %s", m.CommitLSN, pglogrepl.LSN(d.commit))
		}
		d.commit = 0
		return Event{Kind: Commit, LSN: uint64(m.TransactionEndLSN)}, true, nil
	case *pglogrepl.RelationMessage:
		return Event{}, false, d.announce(m)
	}
	return Event{}, false, nil
}

func (d *decoder) announce(m *pglogrepl.RelationMessage) error {
	if m.Namespace != d.schema || m.RelationName != d.table {
		d.seen[m.RelationID] = struct{}{}
		if d.relation == m.RelationID { // renamed away
			d.relation = 0
		}
		return nil
	}
	place := make(map[uint16]int, columns)
	var has [columns]bool
	for i, column := range m.Columns {
		for c, name := range columnNames {
			if column.Name == name {
				place[uint16(i)], has[c] = c, true
			}
		}
	}
	for c, name := range columnNames {
		if !has[c] && c != colTrace {
			return &TableError{Table: d.schema + "." + d.table, Column: name}
		}
	}
	delete(d.seen, m.RelationID)
	d.relation, d.place = m.RelationID, place
	return nil
}

func (d *decoder) insert(data []byte) (Event, bool, error) {
	if len(data) < 7 || data[4] != 'N' {
		return Event{}, false, errors.New("decode pgoutput insert: short message")
	}
	relation := binary.BigEndian.Uint32(data)
	if relation != d.relation {
		if _, known := d.seen[relation]; known {
			return Event{}, false, nil
		}
		return Event{}, false, fmt.Errorf("decode pgoutput insert: relation %d was not announced", relation)
	}
	if d.commit == 0 {
		return Event{}, false, errors.New("decode pgoutput insert: outside of a transaction")
	}
	values, err := d.tuple(data[5:])
	if err != nil {
		return Event{}, false, err
	}
	d.ordinal++
	event := Event{Kind: Insert}
	event.Row.Position = outbox.Position{CommitLSN: d.commit, Ordinal: d.ordinal}
	return event, true, d.row(&event.Row, values)
}

// tuple finds the texts of the outbox's columns; a null is nil. The texts are parts of data.
func (d *decoder) tuple(data []byte) (values [columns][]byte, err error) {
	short := errors.New("decode pgoutput insert: the tuple ends early")
	count := binary.BigEndian.Uint16(data)
	data = data[2:]
	for i := range count {
		if len(data) == 0 {
			return values, short
		}
		kind := data[0]
		data = data[1:]
		if kind == 'n' {
			continue
		}
		if kind != 't' {
			return values, fmt.Errorf("decode pgoutput insert: column %d has kind %q, want a text or a null", i, kind)
		}
		if len(data) < 4 {
			return values, short
		}
		size := binary.BigEndian.Uint32(data)
		data = data[4:]
		if uint64(size) > uint64(len(data)) {
			return values, short
		}
		if c, wanted := d.place[i]; wanted {
			values[c] = data[:size:size]
		}
		data = data[size:]
	}
	return values, nil
}

func (d *decoder) row(row *outbox.Row, values [columns][]byte) error {
	var err error
	if row.ID, err = strconv.ParseInt(string(values[colID]), 10, 64); err != nil {
		return fmt.Errorf("decode column id: %w", err)
	}
	for c, value := range values {
		if value == nil && c != colTrace {
			row.Invalid = "column " + columnNames[c] + " is null"
			return nil
		}
	}
	version, err := strconv.ParseInt(string(values[colVersion]), 10, 32)
	if err != nil {
		return fmt.Errorf("decode column metadata_version of row %d: %w", row.ID, err)
	}
	row.MetadataVersion = int32(version)
	row.Type, row.Environment = d.word(values[colType]), d.word(values[colEnvironment])
	row.Context, row.TraceContext = bytes.Clone(values[colContext]), string(values[colTrace])
	row.Time, row.Invalid = parseTime(values[colTime])
	return nil
}

// word returns a text that repeats from row to row without allocating it again.
func (d *decoder) word(text []byte) string {
	const most, longest = 4096, 256 // beyond these the texts do not repeat, and keeping them would only hold memory
	if len(text) > longest {
		return string(text)
	}
	if w, known := d.words[string(text)]; known {
		return w
	}
	if len(d.words) >= most {
		clear(d.words)
	}
	w := string(text)
	d.words[w] = w
	return w
}
