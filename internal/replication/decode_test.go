package replication

import (
	"encoding/binary"
	"errors"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/jackc/pgx/v5/pgtype"

	"github.com/sluicebox/sluicebox/internal/decode"
	"github.com/sluicebox/sluicebox/outbox"
)

// committed is the time of the transaction that begin begins.
func committed(lsn uint64) int64 {
	return time.Date(2000, 1, 1, 0, 0, int(lsn), 0, time.UTC).UnixMicro()
}

// The messages of pgoutput, protocol version 1, as the manual lays them out (Logical Replication Message Formats).

func begin(lsn uint64) []byte {
	m := binary.BigEndian.AppendUint64([]byte{'B'}, lsn)
	m = binary.BigEndian.AppendUint64(m, lsn*1_000_000) // second lsn of the year 2000
	return binary.BigEndian.AppendUint32(m, 42)
}

func commit(lsn, end uint64) []byte {
	m := binary.BigEndian.AppendUint64([]byte{'C', 0}, lsn)
	m = binary.BigEndian.AppendUint64(m, end)
	return binary.BigEndian.AppendUint64(m, 0)
}

func relation(oid uint32, schema string, names ...string) []byte {
	m := binary.BigEndian.AppendUint32([]byte{'R'}, oid)
	m = append(append(m, schema...), 0)
	m = append(append(m, "event_outbox"...), 0, 'd')
	m = binary.BigEndian.AppendUint16(m, uint16(len(names)))
	for _, name := range names {
		m = append(append(append(m, 0), name...), 0)
		m = binary.BigEndian.AppendUint32(m, types[name])
		m = binary.BigEndian.AppendUint32(m, 0xffffffff)
	}
	return m
}

// types are the OIDs of the columns' types, where they matter.
//
//nolint:gochecknoglobals // a constant table
var types = map[string]uint32{"id": pgtype.Int8OID, "event_date_time": pgtype.TimestamptzOID, "metadata_version": pgtype.Int4OID}

func insert(oid uint32, values ...any) []byte {
	m := binary.BigEndian.AppendUint32([]byte{'I'}, oid)
	m = append(m, 'N')
	m = binary.BigEndian.AppendUint16(m, uint16(len(values)))
	for _, value := range values {
		text, ok := value.(string)
		if !ok {
			m = append(m, 'n')
			continue
		}
		m = binary.BigEndian.AppendUint32(append(m, 't'), uint32(len(text)))
		m = append(m, text...)
	}
	return m
}

//nolint:gochecknoglobals // a constant table
var names = []string{"id", "event_type", "event_date_time", "environment", "event_context", "metadata_version", "trace_context", "processed"}

func values(id, at string) []any {
	return []any{id, "user has been created", at, "test", `{"a": 1}`, "1", nil, "f"}
}

// feed decodes messages and returns the events.
func feed(t *testing.T, d *decoder, messages ...[]byte) []Event {
	t.Helper()
	var events []Event
	for _, m := range messages {
		event, ok, err := d.decode(m)
		if err != nil {
			t.Fatalf("decode %q: %v", m, err)
		}
		if ok {
			events = append(events, event)
		}
	}
	return events
}

func TestDecode(t *testing.T) {
	t.Parallel()
	const at = "2026-01-02 03:04:05.678901+00"
	want := func(id int64, lsn uint64, ordinal uint32) Event {
		return Event{Committed: committed(lsn), Row: outbox.Row{
			ID: id, Type: "user has been created", Time: time.Date(2026, 1, 2, 3, 4, 5, 678901000, time.UTC), Environment: "test",
			Context: []byte(`{"a": 1}`), MetadataVersion: 1, Position: outbox.Position{CommitLSN: lsn, Ordinal: ordinal},
		}}
	}

	t.Run("rows are numbered in their transaction, and a commit gives its end", func(t *testing.T) {
		t.Parallel()
		got := feed(t, newDecoder("public", "event_outbox"),
			begin(100), relation(7, "public", names...), insert(7, values("1", at)...), insert(7, values("2", at)...), commit(100, 120),
			begin(130), insert(7, values("3", at)...), commit(130, 140))
		expect := []Event{want(1, 100, 1), want(2, 100, 2), {Kind: Commit, LSN: 120, Committed: committed(100)}, want(3, 130, 1), {Kind: Commit, LSN: 140, Committed: committed(130)}}
		if diff := cmp.Diff(expect, got); diff != "" {
			t.Error(diff)
		}
	})
	t.Run("other tables of the publication are passed over and not counted", func(t *testing.T) {
		t.Parallel()
		got := feed(t, newDecoder("public", "event_outbox"),
			begin(100), relation(8, "other", "id"), insert(8, "1"),
			relation(7, "public", names...), insert(7, values("1", at)...), commit(100, 120))
		if diff := cmp.Diff([]Event{want(1, 100, 1), {Kind: Commit, LSN: 120, Committed: committed(100)}}, got); diff != "" {
			t.Error(diff)
		}
	})
	t.Run("columns are found by name, and others carried along", func(t *testing.T) {
		t.Parallel()
		got := feed(t, newDecoder("public", "event_outbox"), begin(100),
			relation(7, "public", "extra", "metadata_version", "event_context", "environment", "event_date_time", "event_type", "id"),
			insert(7, "surplus", "1", `{"a": 1}`, "test", at, "user has been created", "1"))
		carried := want(1, 100, 1)
		carried.Row.More = []outbox.Column{{Name: "extra", Text: []byte("surplus")}}
		if diff := cmp.Diff([]Event{carried}, got); diff != "" {
			t.Error(diff)
		}
	})
	t.Run("the message may be reused", func(t *testing.T) {
		t.Parallel()
		d := newDecoder("public", "event_outbox")
		feed(t, d, begin(100), relation(7, "public", names...))
		m := insert(7, values("1", at)...)
		got := feed(t, d, m)
		clear(m)
		if diff := cmp.Diff([]Event{want(1, 100, 1)}, got); diff != "" {
			t.Error(diff)
		}
	})
	t.Run("a missing column is an error that names it", func(t *testing.T) {
		t.Parallel()
		_, _, err := newDecoder("public", "event_outbox").decode(relation(7, "public", names[1:]...))
		var table *decode.TableError
		if !errors.As(err, &table) || table.Problem != "column id is missing" {
			t.Errorf("error is %v", err)
		}
	})
	t.Run("a null where a value must be makes the row invalid, never an empty value", func(t *testing.T) {
		t.Parallel()
		d := newDecoder("public", "event_outbox")
		feed(t, d, begin(100), relation(7, "public", names...))
		row := values("1", at)
		row[3] = nil
		got := feed(t, d, insert(7, row...))
		if len(got) != 1 || got[0].Row.ID != 1 || got[0].Row.Invalid != "column environment is null" {
			t.Errorf("got %+v", got)
		}
	})
}

// FuzzDecode feeds whatever a broken server or link might send: an error is fine, a panic is not.
func FuzzDecode(f *testing.F) {
	const at = "2026-01-02 03:04:05+00"
	for _, m := range [][]byte{
		{},
		begin(1), commit(1, 2), relation(7, "public", names...), insert(7, values("1", at)...),
		{'I', 0, 0, 0, 7, 'N', 0xff, 0xff},
		{'Y'},
		{'T'},
		{'R', 0},
	} {
		f.Add(m)
	}
	f.Fuzz(func(t *testing.T, message []byte) {
		d := newDecoder("public", "event_outbox")
		feed(t, d, begin(100), relation(7, "public", names...))
		_, _, _ = d.decode(message)
	})
}
