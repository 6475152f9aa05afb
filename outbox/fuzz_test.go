package outbox_test

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"math"
	"regexp"
	"strings"
	"testing"
	"time"
	"unicode/utf8"

	"github.com/jackc/pgx/v5/pgconn"
	"github.com/shopspring/decimal"

	"github.com/sluicebox/sluicebox/outbox"
)

// taking is a transaction that takes everything.
type taking struct{ sent bool }

func (s *taking) Exec(context.Context, string, ...any) (pgconn.CommandTag, error) {
	s.sent = true
	return pgconn.NewCommandTag("INSERT 0 1"), nil
}

func (*taking) Rollback(context.Context) error { return nil }

// FuzzPublish holds that an event is sent only if Postgres can take it, and the daemon deliver it.
func FuzzPublish(f *testing.F) {
	f.Add("user has been created", "test", []byte(`{"email": "ada@example.com"}`), 1, "", int64(0))
	f.Add("", "a\x00", []byte(`"\ud83d\ude00"`), -1, "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01", int64(1<<40))
	f.Add(" ", "\xff", []byte(`"\\\u0000"`), 1<<31, "x", int64(-1<<40))
	f.Add("t", "e", []byte(`{"\ud83d":"\ude00"}`), 1, "", int64(9223372036))
	f.Add("t", "e", []byte(`[1E700, 1e131072]`), 1, "", int64(0))
	f.Add("t", "e", []byte(`[0e20000, 1e20000, -1E131071]`), 1, "", int64(0))
	f.Add("t", "e", []byte(`{}`), 1, "", time.Time{}.Unix())
	decimal.MaxDecodeExponent = math.MaxInt32 // it takes none beyond 10000 by itself; Postgres does
	f.Fuzz(func(t *testing.T, kind, environment string, content []byte, version int, trace string, seconds int64) {
		tx := &taking{}
		at := time.Unix(seconds, 0).UTC()
		err := outbox.Publish(t.Context(), tx, outbox.Event{
			Type: kind, Environment: environment, Context: json.RawMessage(content), MetadataVersion: version, TraceContext: trace, Time: at,
		})
		if err != nil {
			var invalid *outbox.InvalidError
			if !errors.As(err, &invalid) || tx.sent {
				t.Errorf("error is %v, sent: %v", err, tx.sent)
			}
			return
		}
		var whole any
		decoder := json.NewDecoder(bytes.NewReader(content)) // of any number, float64 or not
		decoder.UseNumber()
		bad := !json.Valid(content) || decoder.Decode(&whole) != nil || outOfRange(content) || strings.ContainsRune(fmt.Sprint(whole), 0) || !utf8.Valid(content) ||
			strings.TrimSpace(kind) == "" || strings.ContainsRune(kind+environment, 0) || !utf8.ValidString(kind+environment) ||
			version < 0 || version > 1<<31-1 || !at.IsZero() && (at.Year() < 1900 || at.Year() > 2262)
		if bad || !tx.sent {
			t.Errorf("sent: %v; accepted %q in %q: %q, version %d, at %s", tx.sent, kind, environment, content, version, at)
		}
	})
}

// outOfRange tells whether a number is larger than any of numeric, or has more digits after the point. It goes by arithmetic that is exact.
func outOfRange(content []byte) bool {
	number := regexp.MustCompile(`-?[0-9]+(\.[0-9]+)?([eE][+-]?[0-9]+)?`)
	text := regexp.MustCompile(`"([^"\\]|\\.)*"`).ReplaceAll(content, nil)
	for _, s := range number.FindAllString(string(text), -1) {
		d, err := decimal.NewFromString(s)
		if err != nil || -d.Exponent() > 16383 || !d.IsZero() && int64(d.NumDigits())+int64(d.Exponent()) > 131072 {
			return true
		}
	}
	return false
}

// FuzzValidTraceContext holds it against the grammar of https://www.w3.org/TR/trace-context/.
func FuzzValidTraceContext(f *testing.F) {
	const valid = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"
	for _, s := range []string{valid, valid + "-x", "cc" + valid[2:] + "-x", "ff" + valid[2:], "", strings.ToUpper(valid), "00-" + strings.Repeat("0", 32) + valid[35:]} {
		f.Add(s)
	}
	grammar := regexp.MustCompile(`^([0-9a-f]{2})-([0-9a-f]{32})-([0-9a-f]{16})-[0-9a-f]{2}(-[!-~]*)?$`)
	f.Fuzz(func(t *testing.T, s string) {
		m := grammar.FindStringSubmatch(s)
		want := m != nil && len(s) <= 255 && m[1] != "ff" && (m[1] != "00" || m[4] == "") &&
			strings.Trim(m[2], "0") != "" && strings.Trim(m[3], "0") != ""
		if got := outbox.ValidTraceContext(s); got != want {
			t.Errorf("%q: %v, want %v", s, got, want)
		}
	})
}
