package replication

import (
	"encoding/binary"
	"errors"
	"fmt"

	"github.com/jackc/pglogrepl"

	"github.com/sluicebox/sluicebox/internal/decode"
	"github.com/sluicebox/sluicebox/outbox"
)

// decoder turns pgoutput messages into events. It belongs to one stream: relations and the open transaction are its state.
type decoder struct {
	schema, table string

	relation uint32 // OID of the outbox in this stream; 0: not announced yet
	renamed  uint32 // OID of what was the outbox in this stream, until it was renamed; 0: none was
	layout   *decode.Layout
	texts    [][]byte            // of the row that is decoded, one a column
	seen     map[uint32]struct{} // OIDs of other tables in the publication
	commit   uint64              // commit LSN of the open transaction; 0: none is open
	at       int64               // when it was committed, in microseconds since 1970
	ordinal  uint32              // rows of the outbox so far in the open transaction
}

func newDecoder(schema, table string) *decoder {
	return &decoder{schema: schema, table: table, seen: map[uint32]struct{}{}}
}

// decode reads one pgoutput message (protocol version 1). ok is false when the message carries nothing for the outbox.
// data may be reused once decode has returned.
func (d *decoder) decode(data []byte) (event Event, ok bool, err error) {
	if len(data) == 0 {
		return Event{}, false, errors.New("empty pgoutput message")
	}
	switch data[0] {
	case 'I': // the hot path: everything else comes once a transaction at most
		return d.insert(data[1:])
	case 'U', 'D', 'T', 'Y', 'O', 'M':
		// Updates, deletes, truncates, types, origins and messages are passed over unread. To parse a damaged truncate of ten bytes is to
		// make room for 4 billion relations.
		return Event{}, false, nil
	}
	message, err := parse(data)
	if err != nil {
		return Event{}, false, fmt.Errorf("decode pgoutput message %q: %w", data[0], err)
	}
	switch m := message.(type) {
	case *pglogrepl.BeginMessage:
		d.commit, d.at, d.ordinal = uint64(m.FinalLSN), m.CommitTime.UnixMicro(), 0
	case *pglogrepl.CommitMessage:
		if d.commit != uint64(m.CommitLSN) {
			return Event{}, false, fmt.Errorf("commit %s ends a transaction that began for %s", m.CommitLSN, pglogrepl.LSN(d.commit))
		}
		d.commit = 0
		return Event{Kind: Commit, LSN: uint64(m.TransactionEndLSN), Committed: d.at}, true, nil
	case *pglogrepl.RelationMessage:
		return Event{}, false, d.announce(m)
	}
	return Event{}, false, nil
}

// parse is [pglogrepl.Parse], which panics if a message ends early.
func parse(data []byte) (message pglogrepl.Message, err error) {
	defer func() {
		if damage := recover(); damage != nil {
			err = fmt.Errorf("it is damaged: %v", damage)
		}
	}()
	return pglogrepl.Parse(data)
}

func (d *decoder) announce(m *pglogrepl.RelationMessage) error {
	if m.Namespace != d.schema || m.RelationName != d.table {
		d.seen[m.RelationID] = struct{}{}
		if d.relation == m.RelationID { // renamed away
			d.relation, d.renamed = 0, m.RelationID
		}
		return nil
	}
	announced := make([]decode.Column, len(m.Columns))
	for i, column := range m.Columns {
		announced[i] = decode.Column{Name: column.Name, Type: column.DataType}
	}
	layout, err := decode.NewLayout(d.schema+"."+d.table, announced)
	if err != nil {
		return err
	}
	delete(d.seen, m.RelationID)
	if d.renamed == m.RelationID {
		d.renamed = 0
	}
	d.relation, d.layout, d.texts = m.RelationID, layout, make([][]byte, layout.Columns())
	return nil
}

func (d *decoder) insert(data []byte) (Event, bool, error) {
	if len(data) < 7 || data[4] != 'N' {
		return Event{}, false, errors.New("decode pgoutput insert: short message")
	}
	relation := binary.BigEndian.Uint32(data)
	if relation != d.relation {
		if relation == d.renamed { // it may have its name again by now, and then nothing else would tell of the row
			return Event{}, false, &decode.TableError{Table: d.schema + "." + d.table, Problem: "a row was written while it had another name"}
		}
		if _, known := d.seen[relation]; known {
			return Event{}, false, nil
		}
		return Event{}, false, fmt.Errorf("decode pgoutput insert: relation %d was not announced", relation)
	}
	if d.commit == 0 {
		return Event{}, false, errors.New("decode pgoutput insert: outside of a transaction")
	}
	if err := d.tuple(data[5:]); err != nil {
		return Event{}, false, err
	}
	d.ordinal++
	event := Event{Kind: Insert, Committed: d.at}
	event.Row.Position = outbox.Position{CommitLSN: d.commit, Ordinal: d.ordinal}
	if err := d.layout.Row(d.texts, &event.Row); err != nil {
		return Event{}, false, err
	}
	return event, true, nil
}

var errShort = errors.New("decode pgoutput insert: the tuple ends early")

// tuple finds the texts of the columns; a null is nil. The texts are parts of data.
func (d *decoder) tuple(data []byte) error {
	count := int(binary.BigEndian.Uint16(data))
	if count != len(d.texts) {
		return fmt.Errorf("decode pgoutput insert: %d columns, %d were announced", count, len(d.texts))
	}
	data = data[2:]
	for i := range count {
		if len(data) == 0 {
			return errShort
		}
		kind := data[0]
		data = data[1:]
		d.texts[i] = nil
		if kind == 'n' {
			continue
		}
		if kind != 't' {
			return fmt.Errorf("decode pgoutput insert: column %d has kind %q, want a text or a null", i, kind)
		}
		if len(data) < 4 {
			return errShort
		}
		size := binary.BigEndian.Uint32(data)
		data = data[4:]
		if uint64(size) > uint64(len(data)) {
			return errShort
		}
		d.texts[i] = data[:size:size]
		data = data[size:]
	}
	return nil
}
