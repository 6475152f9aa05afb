package outbox_test

import (
	"context"
	"encoding/json"
	"errors"
	"math"
	"strings"
	"testing"
	"time"

	"github.com/jackc/pgx/v5/pgconn"

	"github.com/sluicebox/sluicebox/outbox"
)

// untouched is a transaction that nothing may be sent in.
type untouched struct{ t *testing.T }

func (u untouched) Exec(context.Context, string, ...any) (pgconn.CommandTag, error) {
	u.t.Helper()
	u.t.Error("something was sent")
	return pgconn.CommandTag{}, nil
}

func (u untouched) Rollback(context.Context) error {
	u.t.Helper()
	u.t.Error("rolled back")
	return nil
}

func TestInvalidEventsAreNamedAndNotSent(t *testing.T) {
	t.Parallel()
	valid := outbox.Event{Type: "t", Environment: "test"}
	for name, test := range map[string]struct {
		change        func(*outbox.Event)
		field, reason string
	}{
		"no type":              {func(e *outbox.Event) { e.Type = "" }, "Type", "is empty"},
		"blank type":           {func(e *outbox.Event) { e.Type = " \t" }, "Type", "is empty"},
		"type not UTF-8":       {func(e *outbox.Event) { e.Type = "a\xff" }, "Type", "is not valid UTF-8"},
		"NUL in the type":      {func(e *outbox.Event) { e.Type = "a\x00" }, "Type", "has a NUL character, which Postgres cannot store"},
		"no environment":       {func(e *outbox.Event) { e.Environment = "" }, "Environment", "is empty"},
		"NUL in environment":   {func(e *outbox.Event) { e.Environment = "\x00" }, "Environment", "has a NUL character, which Postgres cannot store"},
		"before 1900":          {func(e *outbox.Event) { e.Time = time.Date(1899, 12, 31, 23, 59, 59, 0, time.UTC) }, "Time", "is not in 1900-01-01 to 2262-04-10, which is what ClickHouse's DateTime64 can hold"},
		"after 2262":           {func(e *outbox.Event) { e.Time = time.Date(2262, 4, 11, 0, 0, 0, 0, time.UTC) }, "Time", "is not in 1900-01-01 to 2262-04-10, which is what ClickHouse's DateTime64 can hold"},
		"after 2262 in UTC":    {func(e *outbox.Event) { e.Time = time.Date(2262, 4, 10, 23, 0, 0, 0, time.FixedZone("", -7200)) }, "Time", "is not in 1900-01-01 to 2262-04-10, which is what ClickHouse's DateTime64 can hold"},
		"negative version":     {func(e *outbox.Event) { e.MetadataVersion = -1 }, "MetadataVersion", "is -1, not in 1 to 2147483647"},
		"version too big":      {func(e *outbox.Event) { e.MetadataVersion = math.MaxInt32 + 1 }, "MetadataVersion", "is 2147483648, not in 1 to 2147483647"},
		"bad traceparent":      {func(e *outbox.Event) { e.TraceContext = "00-x" }, "TraceContext", "is not a W3C traceparent"},
		"unmarshallable":       {func(e *outbox.Event) { e.Context = func() {} }, "Context", "cannot be marshalled: json: unsupported type: func()"},
		"bad raw JSON":         {func(e *outbox.Event) { e.Context = json.RawMessage(`{"a":`) }, "Context", "cannot be marshalled: json: error calling MarshalJSON for type json.RawMessage: unexpected end of JSON input"},
		"bytes":                {func(e *outbox.Event) { e.Context = []byte(`{}`) }, "Context", "is a []byte, which would become a base64 string; use json.RawMessage for JSON text"},
		"raw JSON not UTF-8":   {func(e *outbox.Event) { e.Context = json.RawMessage("{\"a\":\"\xff\"}") }, "Context", "is not valid UTF-8"},
		"NUL in context":       {func(e *outbox.Event) { e.Context = map[string]string{"a": "b\x00"} }, "Context", `has a NUL character (\u0000), which jsonb cannot store`},
		"NUL after backslash":  {func(e *outbox.Event) { e.Context = json.RawMessage(`"\\\u0000"`) }, "Context", `has a NUL character (\u0000), which jsonb cannot store`},
		"lone high surrogate":  {func(e *outbox.Event) { e.Context = json.RawMessage(`"\ud83d"`) }, "Context", "has half of a surrogate pair, which jsonb cannot store"},
		"lone low surrogate":   {func(e *outbox.Event) { e.Context = json.RawMessage(`"\ude00x"`) }, "Context", "has half of a surrogate pair, which jsonb cannot store"},
		"high, then no escape": {func(e *outbox.Event) { e.Context = json.RawMessage(`"\ud83d\n\ude00"`) }, "Context", "has half of a surrogate pair, which jsonb cannot store"},
		"number too large":     {func(e *outbox.Event) { e.Context = json.RawMessage(`{"a": [1, -2e131072]}`) }, "Context", "has a number that jsonb cannot store: it takes 131072 digits before the decimal point and 16383 after it"},
		"long when printed":    {func(e *outbox.Event) { e.Context = json.RawMessage("[" + strings.Repeat("1e131071,", 200) + "1]") }, "Context", "has 26214603 bytes once its numbers are written without exponents, as Postgres does, more than 16777216"},
		"context too long":     {func(e *outbox.Event) { e.Context = strings.Repeat("x", outbox.MaxContext-1) }, "Context", "has 16777217 bytes of JSON, more than 16777216"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			event := valid
			test.change(&event)
			err := outbox.Publish(t.Context(), untouched{t}, valid, event, valid)
			invalid := new(outbox.InvalidError)
			if !errors.As(err, &invalid) || invalid.Index != 1 || invalid.Field != test.field || invalid.Reason != test.reason {
				t.Errorf("error %v; want event 1, %s %s", err, test.field, test.reason)
			}
		})
	}
}

func TestEveryInvalidFieldIsNamed(t *testing.T) {
	t.Parallel()
	err := outbox.Publish(t.Context(), untouched{t}, outbox.Event{Type: "t"}, outbox.Event{Environment: "e", MetadataVersion: -1})
	want := "event 0: Environment is empty\nevent 1: Type is empty\nevent 1: MetadataVersion is -1, not in 1 to 2147483647"
	if err == nil || err.Error() != want {
		t.Errorf("error %v\nwant %s", err, want)
	}
}

func TestNoEventsAreNotSent(t *testing.T) {
	t.Parallel()
	if err := outbox.Publish(t.Context(), untouched{t}); err != nil {
		t.Error(err)
	}
}

func TestValidTraceContext(t *testing.T) {
	t.Parallel()
	const good = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"
	for s, want := range map[string]bool{
		good:                               true,
		"01" + good[2:]:                    true,
		"01" + good[2:] + "-x":             true,
		"":                                 false,
		good + "-x":                        false,
		good + "0":                         false,
		"01" + good[2:] + "x":              false,
		"ff" + good[2:]:                    false,
		"0g" + good[2:]:                    false,
		strings.ToUpper(good):              false,
		good[:54]:                          false,
		strings.Replace(good, "-", "_", 1): false,
		"00-00000000000000000000000000000000-00f067aa0ba902b7-01": false,
		"00-4bf92f3577b34da6a3ce929d0e0e4736-0000000000000000-01": false,
		"00-4bf92f3577b34da6a3ce929d0e0e473 -00f067aa0ba902b7-01": false,
		"01" + good[2:] + "-" + strings.Repeat("x", 300):          false,
		"01" + good[2:] + "-\n":                                   false,
	} {
		if got := outbox.ValidTraceContext(s); got != want {
			t.Errorf("%q: %v, want %v", s, got, want)
		}
	}
}
