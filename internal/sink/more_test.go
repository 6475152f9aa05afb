package sink_test

import (
	"errors"
	"fmt"
	"strings"
	"testing"

	"github.com/ClickHouse/clickhouse-go/v2"
	"github.com/ClickHouse/clickhouse-go/v2/lib/driver"

	"github.com/sluicebox/sluicebox/internal/batch"
	"github.com/sluicebox/sluicebox/internal/testdb"
	"github.com/sluicebox/sluicebox/outbox"
)

// null stands for the NULL of Postgres, and in what ClickHouse shows for its own.
const null = "\x00"

// TestCarry writes what Postgres prints into columns of each type, over both protocols, and reads it back as ClickHouse prints it.
func TestCarry(t *testing.T) {
	t.Parallel()
	fits := []struct{ kind, text, want string }{
		{"String", "a 'b' \\ \n 🦆", "a 'b' \\ \n 🦆"},
		{"String", "", ""},
		{"Nullable(String)", null, null},
		{"LowCardinality(String)", "acme", "acme"},
		{"LowCardinality(Nullable(String))", null, null},
		{"LowCardinality(Nullable(String))", "acme", "acme"},
		{"FixedString(4)", "abcd", "abcd"},
		{"Bool", "t", "true"},
		{"Bool", "f", "false"},
		{"UInt8", "t", "1"},
		{"UInt8", "255", "255"},
		{"Int8", "-128", "-128"},
		{"Int16", "32767", "32767"},
		{"Int32", "-2147483648", "-2147483648"},
		{"Int64", "-9223372036854775808", "-9223372036854775808"},
		{"UInt64", "18446744073709551615", "18446744073709551615"},
		{"Nullable(Int64)", "7", "7"},
		{"Nullable(Int64)", null, null},
		{"Int128", "-170141183460469231731687303715884105728", "-170141183460469231731687303715884105728"},
		{"UInt256", "115792089237316195423570985008687907853269984665640564039457584007913129639935", "115792089237316195423570985008687907853269984665640564039457584007913129639935"},
		{"Float64", "0.1", "0.1"},
		{"Float64", "Infinity", "inf"},
		{"Float64", "NaN", "nan"},
		{"Float64", "0e5", "0"},
		{"Float32", "1.5", "1.5"},
		{"LowCardinality(Float64)", "1.5", "1.5"},
		{"Decimal(9, 2)", "-1234567.89", "-1234567.89"},
		{"Decimal(38, 10)", "0.0000000001", "0.0000000001"},
		{"Decimal(9, 2)", "1.500", "1.5"},
		{"UUID", "6ba7b810-9dad-11d1-80b4-00c04fd430c8", "6ba7b810-9dad-11d1-80b4-00c04fd430c8"},
		{"UUID", "6BA7B8109DAD11D180B400C04FD430C8", "6ba7b810-9dad-11d1-80b4-00c04fd430c8"},
		{"IPv4", "192.0.2.7", "192.0.2.7"},
		{"IPv6", "2001:db8::1", "2001:db8::1"},
		{"Enum8('a' = 1, 'it\\'s' = 2)", "it's", "it's"},
		{"Date", "2026-03-14", "2026-03-14"},
		{"Date32", "1900-01-01", "1900-01-01"},
		{"DateTime('UTC')", "2026-03-14 15:09:26.5+00", "2026-03-14 15:09:26"},
		{"DateTime64(6, 'UTC')", "2026-03-14 15:09:26.535897+00", "2026-03-14 15:09:26.535897"},
		{"DateTime64(6, 'UTC')", "2026-03-14 15:09:26.535897", "2026-03-14 15:09:26.535897"},
		{"DateTime64(3, 'UTC')", "1900-01-01 00:00:00+00", "1900-01-01 00:00:00.000"},
		{"DateTime64(3, 'UTC')", "1969-12-31 23:59:59.9999+00", "1969-12-31 23:59:59.999"},
		{"DateTime64(0, 'UTC')", "1969-12-31 23:59:58.9+00", "1969-12-31 23:59:58"},
		{"Nullable(DateTime64(6, 'UTC'))", null, null},
	}
	refused := []struct{ kind, text string }{
		{"String", null},
		{"LowCardinality(String)", null},
		{"FixedString(4)", "abcde"},
		{"Bool", "maybe"},
		{"UInt8", "256"},
		{"UInt8", "-1"},
		{"Int8", "128"},
		{"Int64", "9223372036854775808"},
		{"UInt64", "1.5"},
		{"Nullable(UInt32)", "many"},
		{"Int64", strings.Repeat("0", 20_000) + "1"}, // to read one of megabytes would take minutes
		{"Decimal(9, 2)", strings.Repeat("0", 20_000) + "1"},
		{"Float64", "1_0"},
		{"Float64", "0x1p-2"},
		{"Float32", "1e-60"},
		{"LowCardinality(Float64)", "NaN"},
		{"LowCardinality(Nullable(Float64))", "NaN"},
		{"LowCardinality(Float64)", "-0"},
		{"Decimal(9, 2)", "1.005"},
		{"Decimal(9, 2)", "12345678.00"},
		{"Decimal(9, 2)", "NaN"},
		{"UUID", "6ba7b810"},
		{"UUID", "x6ba7b810-9dad-11d1-80b4-00c04fd430c8x"},
		{"IPv4", "192.0.2.0/24"},
		{"IPv4", "2001:db8::1"},
		{"IPv6", "192.0.2.7"},
		{"IPv6", "2001:db8::1%eth0"},
		{"Enum8('a' = 1)", "b"},
		{"Enum8('a' = 1)", "a' = 1, 'c"},
		{"Enum8('a' = 1, 'it\\'s' = 2)", "s"},
		{"Date", "1969-12-31"},
		{"Date", "2149-06-07"},
		{"DateTime('UTC')", "2106-02-07 06:28:16+00"},
		{"DateTime('UTC')", "1969-12-31 23:59:59+00"},
		{"DateTime64(6, 'UTC')", "infinity"},
		{"DateTime64(6, 'UTC')", "0044-03-15 12:00:00+00 BC"},
		{"DateTime64(6, 'UTC')", "2262-04-11 00:00:00+00"},
	}
	protocols(t, func(t *testing.T, _ *testdb.DB, ch driver.Conn, address string) {
		t.Helper()
		for i, c := range fits {
			c2 := fmt.Sprintf("fits_%d", i)
			addColumn(t, ch, c2, c.kind)
		}
		c := open(t, address, "event_log")
		b := newBatch(t, c, 1, 1)
		for i, fit := range fits {
			b.Rows[0].More = append(b.Rows[0].More, more(fmt.Sprintf("fits_%d", i), fit.text))
		}
		b.Rows[0].More = append(b.Rows[0].More, more("lsn", "1"), more("nowhere", "x"))
		if err := c.Write(t.Context(), b); err != nil {
			t.Fatal(err)
		}
		if strings.Join(b.Ignored, " ") != "lsn nowhere" {
			t.Errorf("ignored columns: %q", b.Ignored)
		}
		for i, fit := range fits {
			var got string
			query := fmt.Sprintf(`SELECT ifNull(toString(fits_%d), '%s') FROM event_log`, i, `\0`)
			if err := ch.QueryRow(t.Context(), query).Scan(&got); err != nil || got != fit.want {
				t.Errorf("%q in a %s is read back as %q, %v; want %q", fit.text, fit.kind, got, err, fit.want)
			}
		}
		var lsn uint64
		if err := ch.QueryRow(t.Context(), `SELECT lsn FROM event_log`).Scan(&lsn); err != nil || lsn != b.Rows[0].Position.CommitLSN {
			t.Errorf("lsn is %d, %v: a column of the outbox has replaced the daemon's own", lsn, err)
		}
		for i, bad := range refused {
			name := fmt.Sprintf("refused_%d", i)
			addColumn(t, ch, name, bad.kind)
			b := newBatch(t, c, 10+10*i, 3)
			for r := range b.Rows {
				b.Rows[r].More = []outbox.Column{more(name, bad.text)}
			}
			b.Rows[1].More[0].Text = nil
			if !strings.Contains(bad.kind, "Nullable") {
				b.Rows[1].More[0] = b.Rows[0].More[0]
			}
			var failure *batch.Failure
			err := c.Write(t.Context(), b)
			if !errors.As(err, &failure) || failure.Class != batch.Data || len(failure.Rejected) < 2 || !strings.Contains(failure.Rejected[0].Reason, name) {
				t.Errorf("%q in a %s: %v; want a failure of class data that names the rows and the column", bad.text, bad.kind, err)
			}
		}
		if n := rows(t, ch); n != 1 {
			t.Errorf("ClickHouse has %d rows, want 1: a refused batch stores nothing", n)
		}
	})
}

// TestEnumsOfTheClient has Enums whose names the client library mixes up: it would store another value, or panic.
func TestEnumsOfTheClient(t *testing.T) {
	t.Parallel()
	protocols(t, func(t *testing.T, _ *testdb.DB, ch driver.Conn, address string) {
		t.Helper()
		for i, c := range []struct{ kind, text string }{
			{`Enum8('hello\'s' = 1, 'b' = 2)`, "b"},
			{`Enum8('\'' = 1, 'ab' = 2, 'b' = 3)`, "b"},
			{`Nullable(Enum8('it\'s' = 1, 'other' = 2))`, "other"},
			{`Enum8('a\nb' = 1)`, "a\nb"},
		} {
			name := fmt.Sprintf("mixed_%d", i)
			addColumn(t, ch, name, c.kind)
			s := open(t, address, "event_log")
			b := newBatch(t, s, 1, 1)
			b.Rows[0].More = []outbox.Column{more(name, c.text)}
			var failure *batch.Failure
			if err := s.Write(t.Context(), b); !errors.As(err, &failure) || failure.Class != batch.Configuration {
				t.Errorf("%q in a %s: %v, want class configuration", c.text, c.kind, err)
			}
		}
	})
}

func more(name, text string) outbox.Column {
	if text == null {
		return outbox.Column{Name: name}
	}
	return outbox.Column{Name: name, Text: []byte(text)}
}

func addColumn(t *testing.T, ch driver.Conn, name, kind string) {
	t.Helper()
	ctx := clickhouse.Context(t.Context(), clickhouse.WithSettings(clickhouse.Settings{"allow_suspicious_low_cardinality_types": 1}))
	if err := ch.Exec(ctx, `ALTER TABLE event_log ADD COLUMN `+name+` `+kind); err != nil {
		t.Fatal(err)
	}
}
