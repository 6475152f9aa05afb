package main

import (
	"fmt"
	"strings"
)

// value is one row of docs/values.md: something that a writer puts into a column, and what becomes of it.
type value struct {
	sql     string // an expression for INSERT
	refused string // SQLSTATE with which Postgres refuses it; empty: Postgres takes it
	kept    string // text that Postgres keeps
	aside   bool   // it goes to the quarantine
	holds   string // text that ClickHouse holds; of no meaning when refused or aside
}

// same is a value that arrives as Postgres keeps it.
func same(sql, kept string) value { return value{sql: sql, kept: kept, holds: kept} }

// refused is a value that never gets into the outbox.
func refused(sql, code string) value { return value{sql: sql, refused: code} }

// aside is a value that Postgres keeps and ClickHouse has no place for.
func aside(sql, kept string) value { return value{sql: sql, kept: kept, aside: true} }

// instant is an event time that arrives as it is; text is how ClickHouse writes it. Postgres leaves out zeros at the end of a fraction.
func instant(sql, text string) value {
	return value{sql: sql, kept: strings.TrimSuffix(strings.TrimRight(text, "0"), "."), holds: text}
}

// trace is a trace_context of which ClickHouse holds the trace id, or nothing.
func trace(text, id string) value { return value{sql: quoted(text), kept: text, holds: id} }

// raw is a text that is kept as it is.
func raw(text string) value { return same(quoted(text), text) }

func quoted(text string) string { return `'` + strings.ReplaceAll(text, `'`, `''`) + `'` }

// column is one table of docs/values.md.
type column struct {
	name   string // in the outbox
	target string // in ClickHouse
	values []value
}

func valueTable() []column {
	return []column{
		{"event_context", "event_context", contexts()},
		{"event_type", "event_type", append(texts(), refused(`''`, "23514"), refused(`NULL`, "23502"))},
		{"environment", "environment", append(texts(), same(`''`, ""), refused(`NULL`, "23502"))},
		{"metadata_version", "metadata_version", versions()},
		{"trace_context", "trace_id", traces()},
		{"event_date_time", "event_date_time", times()},
	}
}

func contexts() []value {
	zeros := func(n int) string { return strings.Repeat("0", n) }
	deep := func(n int) string { return strings.Repeat("[", n) + strings.Repeat("]", n) }
	numbers := make([]string, 100_000)
	for i := range numbers {
		numbers[i] = fmt.Sprint(i + 1)
	}
	return []value{
		// Roots of each kind.
		raw(`{}`),
		raw(`[]`),
		raw(`null`),
		raw(`true`),
		raw(`-7`),
		raw(`""`),
		raw(`"text"`),
		raw(`[null, false, 1, "a", [], {}]`),
		refused(`NULL`, "23502"),
		refused(`''`, "22P02"),
		refused(`'{"a": 1'`, "22P02"),
		// Keys.
		same(`'{"a":1,"a":2}'`, `{"a": 2}`),
		same(`'{"a":{"x":1},"a":{"y":2}}'`, `{"a": {"y": 2}}`),
		same(`'{"bb":1,"c":2,"a":3}'`, `{"a": 3, "c": 2, "bb": 1}`),
		raw(`{"a": {"b": 2}, "a.b": 1}`),
		raw(`{"": 1}`),
		raw(`{"A": 2, "a": 1}`),
		raw(`{"a b\t\"c\"": 1}`),
		raw(`{"ключ": 1}`),
		same(`jsonb_build_object(repeat('k', 100000), 1)`, `{"`+strings.Repeat("k", 100_000)+`": 1}`),
		refused(`'{"a\u0000": 1}'`, "22P05"),
		// Numbers.
		raw(`[9223372036854775807, 9223372036854775808, 18446744073709551616]`),
		raw(`[9007199254740993, 0.1, 1.10, 123456789012345678901234567890.123456789]`),
		same(`'1e400'`, "1"+zeros(400)),
		same(`'1e-400'`, "0."+zeros(399)+"1"),
		same(`'[1E2, -0, -0.0, 1.50e1]'`, `[100, 0, 0.0, 15.0]`),
		same(`'1e131071'`, "1"+zeros(131_071)),
		refused(`'1e131072'`, "22003"),
		refused(`'NaN'`, "22P02"),
		same(`to_jsonb('NaN'::numeric)`, `"NaN"`),
		same(`to_jsonb('-infinity'::float8)`, `"-Infinity"`),
		// Strings.
		refused(`'"\u0000"'`, "22P05"),
		raw(`"\\u0000"`),
		same(`'"\u0001\u0008\u001f\u007f"'`, `"\u0001\b\u001f`+"\u007f\""),
		raw(`"\t\n\r\f\b\\\""`),
		same(`'"\/</script>"'`, `"/</script>"`),
		refused(`E'"\t"'`, "22P02"),
		same(`'"\ud83e\udd86"'`, `"🦆"`),
		refused(`'"\ud83e"'`, "22P02"),
		refused(`'"\udd86\ud83e"'`, "22P02"),
		raw(`"🦆 👩‍👩‍👧‍👦 🏳️‍🌈 🇩🇪"`),
		raw(`"שלום עולם, مرحبا"`),
		same(`'"\u202eabc\u202c\u2066\u2069"'`, "\"\u202eabc\u202c\u2066\u2069\""),
		same(`'["\u00e9", "e\u0301"]'`, "[\"\u00e9\", \"e\u0301\"]"),
		same(`'"\ufeff\uffff\u2028\u2029"'`, "\"\ufeff\uffff\u2028\u2029\""),
		same(`'"\udbff\udfff"'`, "\"\U0010ffff\""),
		raw(`"it's; DROP TABLE event_log -- {}[]?$1:x"`),
		// Layout.
		same(`E' {\n"a" :1 }\n'`, `{"a": 1}`),
		// Size.
		same(`(repeat('[', 1000) || repeat(']', 1000))::jsonb`, deep(1000)),
		same(`(repeat('{"a": ', 1000) || '1' || repeat('}', 1000))::jsonb`, strings.Repeat(`{"a": `, 1000)+"1"+strings.Repeat("}", 1000)),
		refused(`(repeat('[', 1000000) || repeat(']', 1000000))::jsonb`, "54001"),
		same(`(SELECT jsonb_agg(n) FROM generate_series(1, 100000) n)`, "["+strings.Join(numbers, ", ")+"]"),
		same(`jsonb_build_object('text', repeat('x', 50 << 20))`, `{"text": "`+strings.Repeat("x", 50<<20)+`"}`),
		refused(`to_jsonb(repeat('x', 256 << 20))`, "54000"),
	}
}

// texts are what every text column keeps.
func texts() []value {
	return []value{
		raw(`a`),
		raw(` `),
		raw(` leading and trailing `),
		raw(`🦆 👩‍👩‍👧‍👦 🏳️‍🌈`),
		raw(`שלום עולם, مرحبا`),
		same(`U&'\202Eabc\202C'`, "\u202eabc\u202c"),
		same(`U&'\00E9 e\0301'`, "\u00e9 e\u0301"),
		same(`U&'\+10FFFF\FFFF\FEFF'`, "\U0010ffff\uffff\ufeff"),
		same(`E'\x01\x02\x1b[31m\x1f\x7f'`, "\x01\x02\x1b[31m\x1f\x7f"),
		same(`E'a\tb\nc\r\nd\\e'`, "a\tb\nc\r\nd\\e"),
		raw(`"it's" \N \0 {} [] ? $1 %s`),
		same(`repeat('long ', 200000)`, strings.Repeat("long ", 200_000)),
		refused(`'a' || chr(0)`, "54000"),
		refused(`E'\xff'`, "22021"),
	}
}

func versions() []value {
	return []value{
		same(`DEFAULT`, "1"),
		same(`1`, "1"),
		same(`2147483647`, "2147483647"),
		refused(`2147483648`, "22003"),
		refused(`0`, "23514"),
		refused(`-1`, "23514"),
		refused(`NULL`, "23502"),
	}
}

func traces() []value {
	const id = "4bf92f3577b34da6a3ce929d0e0e4736"
	return []value{
		trace("00-"+id+"-00f067aa0ba902b7-01", id),
		trace("01-"+id+"-00f067aa0ba902b7-01-more", id),
		trace("00-"+id+"-00f067aa0ba902b7-01-more", ""),
		trace("00-"+strings.ToUpper(id)+"-00f067aa0ba902b7-01", ""),
		trace("00-"+id[1:]+"-00f067aa0ba902b7-01", ""),
		trace("00-00000000000000000000000000000000-00f067aa0ba902b7-01", ""),
		trace("garbage", ""),
		trace("garbage-that has thirty-two characters!-and goes on", ""),
		trace("garbage-that_has_two_and_thirty_characters-x", ""),
		trace("שלום-🦆🦆🦆🦆🦆🦆🦆🦆-x-y", ""),
		trace("", ""),
		{sql: `NULL`},
		{sql: `repeat('-', 1000000)`, kept: strings.Repeat("-", 1_000_000)},
	}
}

func times() []value {
	return []value{
		instant(`'2026-03-14 15:09:26.535897+00'`, "2026-03-14 15:09:26.535897"),
		instant(`'2026-03-14 15:09:26.000001+00'`, "2026-03-14 15:09:26.000001"),
		instant(`'2026-03-14 15:09:26.5358979+00'`, "2026-03-14 15:09:26.535898"),
		instant(`'2026-03-14 23:59:59.9999999+00'`, "2026-03-15 00:00:00.000000"),
		instant(`'2026-03-14 15:09:26+05:45'`, "2026-03-14 09:24:26.000000"),
		instant(`'2026-01-01 00:30:00+14'`, "2025-12-31 10:30:00.000000"),
		instant(`'2026-12-31 23:30:00-12'`, "2027-01-01 11:30:00.000000"),
		// Daylight saving: an hour that comes twice, and one that does not come.
		instant(`'2026-10-25 02:30:00+02'`, "2026-10-25 00:30:00.000000"),
		instant(`'2026-10-25 02:30:00+01'`, "2026-10-25 01:30:00.000000"),
		instant(`'2026-10-25 02:30:00 Europe/Berlin'`, "2026-10-25 01:30:00.000000"),
		instant(`'2026-03-29 02:30:00 Europe/Berlin'`, "2026-03-29 01:30:00.000000"),
		instant(`'2028-02-29 23:59:59.999999+00'`, "2028-02-29 23:59:59.999999"),
		refused(`'2026-02-29'`, "22008"),
		instant(`'2100-02-28 24:00:00+00'`, "2100-03-01 00:00:00.000000"),
		instant(`'2016-12-31 23:59:60+00'`, "2017-01-01 00:00:00.000000"),
		instant(`'epoch'`, "1970-01-01 00:00:00.000000"),
		instant(`'1969-12-31 23:59:59.999999+00'`, "1969-12-31 23:59:59.999999"),
		instant(`'2038-01-19 03:14:08+00'`, "2038-01-19 03:14:08.000000"),
		instant(`'2106-02-07 06:28:16+00'`, "2106-02-07 06:28:16.000000"),
		// The range of a DateTime64(6), and beyond.
		instant(`'1900-01-01 00:00:00+00'`, "1900-01-01 00:00:00.000000"),
		aside(`'1899-12-31 23:59:59.999999+00'`, "1899-12-31 23:59:59.999999"),
		aside(`'1900-01-01 00:00:00+01'`, "1899-12-31 23:00:00"),
		instant(`'2262-04-10 23:59:59.999999+00'`, "2262-04-10 23:59:59.999999"),
		aside(`'2262-04-11 00:00:00+00'`, "2262-04-11 00:00:00"),
		aside(`'0001-01-01 00:00:00+00'`, "0001-01-01 00:00:00"),
		aside(`'0001-12-31 23:59:59+00 BC'`, "0001-12-31 23:59:59 BC"),
		aside(`'9999-12-31 23:59:59.999999+00'`, "9999-12-31 23:59:59.999999"),
		aside(`'10000-01-01 00:00:00+00'`, "10000-01-01 00:00:00"),
		aside(`'4714-11-24 00:00:00+00 BC'`, "4714-11-24 00:00:00 BC"),
		refused(`'4714-11-23 00:00:00+00 BC'`, "22008"),
		aside(`'294276-12-31 23:59:59.999999+00'`, "294276-12-31 23:59:59.999999"),
		refused(`'294277-01-01 00:00:00+00'`, "22008"),
		aside(`'infinity'`, "infinity"),
		aside(`'-infinity'`, "-infinity"),
		refused(`NULL`, "23502"),
	}
}
