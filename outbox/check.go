package outbox

import (
	"encoding/json"
	"errors"
	"fmt"
	"math"
	"strconv"
	"strings"
	"time"
	"unicode/utf16"
	"unicode/utf8"
)

// MaxContext is the longest context of an event, in bytes of JSON. It keeps a batch of the daemon, and so its memory, from
// being a multiple of what it is set to.
const MaxContext = 16 << 20

// InvalidError says that an event cannot be published as it is. Several are joined: find the first with [errors.As].
type InvalidError struct {
	Index  int    // of the event among the arguments of [Publish], from 0
	Field  string // of [Event]
	Reason string
}

// Error names event, field and reason, but not the value, which may be personal.
func (e *InvalidError) Error() string {
	return fmt.Sprintf("event %d: %s %s", e.Index, e.Field, e.Reason)
}

// check returns the context as JSON, and an error for each invalid field.
func (e Event) check(index int) (content string, invalid []error) {
	content, contextErr := e.marshalContext()
	for _, field := range []struct {
		name string
		err  error
	}{
		{"Type", checkName(e.Type)},
		{"Time", e.checkTime()},
		{"Environment", checkName(e.Environment)},
		{"Context", contextErr},
		{"MetadataVersion", e.checkVersion()},
		{"TraceContext", e.checkTrace()},
	} {
		if field.err != nil {
			invalid = append(invalid, &InvalidError{Index: index, Field: field.name, Reason: field.err.Error()})
		}
	}
	return content, invalid
}

func checkName(s string) error {
	switch {
	case strings.TrimSpace(s) == "":
		return errors.New("is empty")
	case !utf8.ValidString(s):
		return errors.New("is not valid UTF-8")
	case strings.ContainsRune(s, 0):
		return errors.New("has a NUL character, which Postgres cannot store")
	default:
		return nil
	}
}

// checkTime keeps to what the daemon can deliver: later it could only put the event aside. ClickHouse would silently take the nearest
// time that it can.
func (e Event) checkTime() error {
	first, end := time.Date(1900, 1, 1, 0, 0, 0, 0, time.UTC), time.Date(2262, 4, 11, 0, 0, 0, 0, time.UTC)
	if !e.Time.IsZero() && (e.Time.Before(first) || !e.Time.Before(end)) {
		return errors.New("is not in 1900-01-01 to 2262-04-10, which is what ClickHouse's DateTime64 can hold")
	}
	return nil
}

func (e Event) checkVersion() error {
	if e.MetadataVersion < 0 || e.MetadataVersion > math.MaxInt32 {
		return fmt.Errorf("is %d, not in 1 to %d", e.MetadataVersion, math.MaxInt32)
	}
	return nil
}

func (e Event) checkTrace() error {
	if e.TraceContext != "" && !ValidTraceContext(e.TraceContext) {
		return errors.New("is not a W3C traceparent")
	}
	return nil
}

func (e Event) marshalContext() (string, error) {
	switch e.Context.(type) {
	case nil:
		return "{}", nil
	case []byte:
		return "", errors.New("is a []byte, which would become a base64 string; use json.RawMessage for JSON text")
	}
	content, err := json.Marshal(e.Context)
	switch {
	case err != nil:
		return "", fmt.Errorf("cannot be marshalled: %w", err)
	case len(content) > MaxContext:
		return "", fmt.Errorf("has %d bytes of JSON, more than %d", len(content), MaxContext)
	case !utf8.Valid(content):
		return "", errors.New("is not valid UTF-8")
	}
	return string(content), checkJSONB(content)
}

// checkJSONB finds what is JSON but not jsonb. The content is valid JSON.
func checkJSONB(content []byte) error {
	printed := len(content)
	for i := 0; i < len(content); {
		var n int
		var err error
		switch c := content[i]; {
		case c == '"':
			n, err = checkString(content[i:])
		case c == '-' || c >= '0' && c <= '9':
			var width int
			n, width, err = checkNumber(content[i:])
			printed += max(0, width-n)
		default:
			n = 1
		}
		if err != nil {
			return err
		}
		i += n
	}
	if printed > MaxContext {
		return fmt.Errorf("has %d bytes once its numbers are written without exponents, as Postgres does, more than %d", printed, MaxContext)
	}
	return nil
}

// checkString finds NUL, and halves of surrogate pairs, in the string that b begins with, and returns the string's length.
func checkString(b []byte) (int, error) {
	for i := 1; ; i++ {
		switch b[i] {
		case '"':
			return i + 1, nil
		case '\\':
			i++
		default:
			continue
		}
		if b[i] != 'u' {
			continue
		}
		r := escaped(b[i-1:])
		i += 4
		switch {
		case r == 0:
			return 0, errors.New(`has a NUL character (\u0000), which jsonb cannot store`)
		case !utf16.IsSurrogate(r):
		case utf16.DecodeRune(r, escaped(b[i+1:])) == utf8.RuneError:
			return 0, errors.New("has half of a surrogate pair, which jsonb cannot store")
		default:
			i += 6 // the other half
		}
	}
}

// checkNumber returns the length of the number that b begins with, and the length of what Postgres makes of it, at least. It finds
// numbers that are out of the range of numeric.
func checkNumber(b []byte) (length, width int, err error) {
	const (
		maxPower    = 131071 // of ten, of the first digit
		maxScale    = 16383
		maxExponent = math.MaxInt32/2 - 1
	)
	for length < len(b) && strings.IndexByte("+-.0123456789Ee", b[length]) >= 0 {
		length++
	}
	mantissa, power, _ := strings.Cut(strings.ToLower(string(b[:length])), "e")
	var exponent int
	if power != "" {
		exponent, err = strconv.Atoi(power)
	}
	whole, fraction, _ := strings.Cut(strings.TrimPrefix(mantissa, "-"), ".")
	digits := whole + fraction
	first := len(digits) - len(strings.TrimLeft(digits, "0"))
	scale := max(0, len(fraction)-exponent)
	top := 0
	if first < len(digits) {
		top = len(whole) - 1 - first + exponent
	}
	if err != nil || exponent > maxExponent || exponent < -maxExponent || scale > maxScale || top > maxPower {
		return 0, 0, fmt.Errorf("has a number that jsonb cannot store: it takes %d digits before the decimal point and %d after it", maxPower+1, maxScale)
	}
	return length, max(0, top) + 1 + scale, nil
}

// escaped returns the code unit of the escape \uXXXX that b starts with, or -1.
func escaped(b []byte) rune {
	if len(b) < 6 || b[0] != '\\' || b[1] != 'u' {
		return -1
	}
	unit, err := strconv.ParseUint(string(b[2:6]), 16, 16)
	if err != nil {
		return -1
	}
	return rune(unit)
}

// traceContextLen is the length of a traceparent of version 00: version, trace-id, parent-id and flags in hexadecimal.
const traceContextLen = len("00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01")

// ValidTraceContext tells whether s is a traceparent header as in https://www.w3.org/TR/trace-context/. What a version later than
// 00 appends is allowed.
func ValidTraceContext(s string) bool {
	if len(s) < traceContextLen || len(s) > 255 {
		return false
	}
	version, trace, parent, flags := s[:2], s[3:35], s[36:52], s[53:55]
	if s[2] != '-' || s[35] != '-' || s[52] != '-' || version == "ff" {
		return false
	}
	if rest := s[traceContextLen:]; rest != "" && (version == "00" || rest[0] != '-' || !printable(rest)) {
		return false
	}
	return lowerHex(version) && lowerHex(flags) &&
		lowerHex(trace) && strings.Trim(trace, "0") != "" &&
		lowerHex(parent) && strings.Trim(parent, "0") != ""
}

// lowerHex goes by bytes: the daemon asks it of every row that has a trace context.
func lowerHex(s string) bool {
	for i := range len(s) {
		if c := s[i]; (c < '0' || c > '9') && (c < 'a' || c > 'f') {
			return false
		}
	}
	return true
}

func printable(s string) bool {
	return strings.IndexFunc(s, func(r rune) bool { return r <= ' ' || r > '~' }) < 0
}
