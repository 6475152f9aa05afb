package sink

import (
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"
	"unicode/utf8"

	"github.com/ClickHouse/clickhouse-go/v2"

	"github.com/sluicebox/sluicebox/internal/batch"
)

// FuzzRefusal holds that whatever ClickHouse answers is of a class, that only what says so by its code is taken for the content, and that
// values which a refusal of content repeats are not told.
func FuzzRefusal(f *testing.F) {
	f.Add(int32(6), "Cannot parse string '", "x", "' as UInt8")
	f.Add(int32(codeViolatedConstraint), "Constraint `sluicebox_deadline` for table t is violated. Column values: a = '", "it's", "'")
	f.Add(int32(codeViolatedConstraint), "Constraint `mine` is violated. Column values: a = ", "Constraint `sluicebox_deadline`", "")
	f.Add(int32(codeWrongPassword), "Authentication failed", "", "")
	f.Add(int32(0), "", "", "")
	f.Add(int32(6), "Cannot parse string '", "Column values: ", "' as UInt8")
	f.Add(int32(987654), "'", "'\n'", "'\\'")
	f.Fuzz(func(t *testing.T, code int32, before, value, after string) {
		const planted = "planted-value"
		quoted := strings.Contains(before, "Column values: ") || strings.HasSuffix(before, "'") && strings.HasPrefix(after, "'")
		err := classify(fmt.Errorf("write batch 7: %w", &clickhouse.Exception{Code: code, Message: before + planted + value + after}))
		var failure *batch.Failure
		if !errors.As(err, &failure) {
			t.Fatalf("%v is no failure", err)
		}
		switch failure.Class {
		case batch.Data, batch.Unlisted:
			if (quoted || code != codeViolatedConstraint) && strings.Contains(failure.Error(), planted) {
				t.Errorf("told: %s", failure.Error())
			}
		case batch.Unknown, batch.Configuration:
		case batch.Expired:
			if code != codeViolatedConstraint || !strings.Contains(before+planted+value+after, "Constraint `"+deadlineConstraint+"`") {
				t.Errorf("code %d is taken for a deadline: %q", code, before)
			}
		default:
			t.Errorf("class %q", failure.Class)
		}
		if Denied(err) != slices.Contains([]int32{codeWrongPassword, codeUnknownUser, codeWrongPasswordOld, codeRequiredPassword}, code) {
			t.Errorf("code %d: denied is %v", code, Denied(err))
		}
	})
}

// FuzzTable holds that no description of a table breaks what reads it, and that a name is quoted so that it stays one.
func FuzzTable(f *testing.F) {
	f.Add("Nullable(Decimal(9, 2))", "1.5", "MergeTree", "SETTINGS non_replicated_deduplication_window = 10000")
	f.Add("Enum8('it\\'s' = 1, 'c\\\\' = -2)", "it's", "ReplicatedMergeTree('/a', 'b')", "replicated_deduplication_window = 99999999999999999999")
	f.Add("LowCardinality(Nullable(FixedString(4)))", "abcde", "Shared", "")
	f.Add("Decimal(2000000000, 5)", "1", "", " = ")
	f.Add("FixedString(-1)", "", "", "")
	f.Add("Int", "1", "", "`\\")
	f.Fuzz(func(t *testing.T, kind, text, engine, settings string) {
		if read, _ := reader(kind); read != nil {
			if value, err := read(text); err == nil && strings.HasPrefix(kind, "String") && value != text {
				t.Errorf("%q is read as %v", text, value)
			}
		}
		window(engine, settings)
		inner, ok := strings.CutPrefix(quote(settings), "`")
		inner, closed := strings.CutSuffix(inner, "`")
		if !ok || !closed || utf8.ValidString(settings) && strings.NewReplacer("\\`", "`", `\\`, `\`).Replace(inner) != settings {
			t.Errorf("%q is quoted as %s", settings, quote(settings))
		}
	})
}
