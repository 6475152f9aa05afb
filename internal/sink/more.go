package sink

import (
	"cmp"
	"errors"
	"fmt"
	"maps"
	"math"
	"math/big"
	"net/netip"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/google/uuid"
	"github.com/shopspring/decimal"

	"github.com/sluicebox/sluicebox/internal/batch"
	"github.com/sluicebox/sluicebox/outbox"
)

// A column of the outbox that is not part of every event is carried if the table in ClickHouse has one of the same name. Its value is
// the text that Postgres prints, read as what the column's type in ClickHouse is; a text that can't be read so is the row's fault.

// reserved are the columns that this package or ClickHouse itself fills.
//
//nolint:gochecknoglobals // a constant table
var reserved = []string{"source", "trace_id", "lsn", "ordinal", "ingested_at", deadlineColumn}

// carry sorts the columns that the rows of a batch have more than an event: carried, by their place in More, and ignored, by name.
func (t *Target) carry(b *batch.Batch) (carried []int, ignored []string) {
	if len(b.Rows) == 0 {
		return nil, nil
	}
	for i, column := range b.Rows[0].More {
		if t.has(column.Name) && !slices.Contains(reserved, column.Name) {
			carried = append(carried, i)
		} else {
			ignored = append(ignored, column.Name)
		}
	}
	return carried, ignored
}

// rejecting gathers the rows whose values a column can't hold, by id.
type rejecting map[int64]batch.Rejected

func (r rejecting) add(row *outbox.Row, column, problem string) {
	r[row.ID] = batch.Rejected{ID: row.ID, Position: row.Position, Reason: "column " + column + " " + problem}
}

// failure is what a batch with such rows gets: nothing of it was sent.
func (r rejecting) failure() error {
	rows := slices.SortedFunc(maps.Values(r), func(a, b batch.Rejected) int { return cmp.Compare(a.ID, b.ID) })
	return &batch.Failure{
		Class: batch.Data, Err: fmt.Errorf("%d events can't be encoded, the first one because %s", len(rows), rows[0].Reason), Rejected: rows,
	}
}

// values reads the texts of one column of a batch. A nil is a NULL. The error is a *[batch.Failure] of the table.
func (t *Target) values(b *batch.Batch, place int, rejected rejecting) ([]any, error) {
	name := b.Rows[0].More[place].Name
	read, nullable := reader(t.types[name])
	if read == nil || !clientReads(t.types[name]) {
		return nil, &batch.Failure{
			Class: batch.Configuration, Err: fmt.Errorf("column %s of the table in ClickHouse has type %s, which can't be filled from the outbox",
				name, t.types[name]),
			Hint: "make it a String, or rename one of the two columns: they are matched by name",
		}
	}
	out := make([]any, len(b.Rows))
	for i := range b.Rows {
		row := &b.Rows[i]
		text := row.More[place].Text
		if text == nil {
			if !nullable {
				rejected.add(row, name, "is null, and in ClickHouse it is not Nullable")
			}
			continue
		}
		value, err := read(string(text))
		if err != nil {
			rejected.add(row, name, "has a value that a "+t.types[name]+" can't hold") // reasons are logged, so they don't repeat it
			continue
		}
		out[i] = value
	}
	return out, nil
}

// reader reads a text of Postgres as a value for a column of a type of ClickHouse; nil: that can't be done. Times are cut to the
// precision of the type.
func reader(kind string) (read func(string) (any, error), nullable bool) {
	inner, dictionary := unwrap(kind, "LowCardinality")
	if dictionary {
		kind = inner
	}
	if inner, ok := unwrap(kind, "Nullable"); ok {
		kind, nullable = inner, true
	}
	name, arguments, _ := strings.Cut(strings.TrimSuffix(kind, ")"), "(")
	switch name {
	case "String":
		read = func(s string) (any, error) { return s, nil }
	case "FixedString":
		read = func(s string) (any, error) {
			size, err := strconv.Atoi(arguments)
			if err != nil || len(s) > size {
				return nil, errRange
			}
			return s, nil
		}
	case "Bool":
		read = func(s string) (any, error) { return strconv.ParseBool(s) }
	case "Int8", "Int16", "Int32", "Int64", "UInt8", "UInt16", "UInt32", "UInt64", "Int128", "Int256", "UInt128", "UInt256":
		read = integer(name)
	case "Float32":
		read = func(s string) (any, error) { f, err := float(s, 32, dictionary); return float32(f), err }
	case "Float64":
		read = func(s string) (any, error) { return float(s, 64, dictionary) }
	case "Decimal":
		read = decimals(arguments)
	case "UUID":
		read = func(s string) (any, error) {
			if len(s) > 36 { // Parse takes any two characters for braces
				return nil, errRange
			}
			return uuid.Parse(s)
		}
	case "IPv4", "IPv6":
		read = func(s string) (any, error) {
			ip, err := netip.ParseAddr(s)
			if err == nil && (ip.Is4() != (name == "IPv4") || ip.Zone() != "") { // ClickHouse has no place for a zone
				return nil, errRange
			}
			return ip, err
		}
	case "Enum8", "Enum16":
		names := enumNames(arguments)
		read = func(s string) (any, error) {
			if !slices.Contains(names, s) {
				return nil, errRange
			}
			return s, nil
		}
	case "Date":
		read = times("2006-01-02", time.Date(1970, 1, 1, 0, 0, 0, 0, time.UTC), time.Date(2149, 6, 7, 0, 0, 0, 0, time.UTC))
	case "Date32":
		read = times("2006-01-02", time.Date(1900, 1, 1, 0, 0, 0, 0, time.UTC), time.Date(2300, 1, 1, 0, 0, 0, 0, time.UTC))
	case "DateTime":
		read = times("", time.Unix(0, 0), time.Unix(1<<32, 0))
	case "DateTime64":
		cut, within := precision(kind), times("", batch.MinTime, batch.MaxTime)
		read = func(s string) (any, error) {
			v, err := within(s)
			if t, ok := v.(time.Time); ok {
				return t.Truncate(cut), nil // here, since the client would round times before 1970 up
			}
			return nil, err
		}
	}
	return read, nullable
}

// precision is what a DateTime64 keeps times to; a nanosecond for any other type.
func precision(kind string) time.Duration {
	_, digits, found := strings.Cut(kind, "DateTime64(")
	if !found || digits == "" || digits[0] < '0' || digits[0] > '9' {
		return time.Nanosecond
	}
	return time.Duration(math.Pow10(int('9' - digits[0])))
}

// float reads a number, which becomes the nearest that the type has, but not 0. What the client keeps as a dictionary has no place for NaN,
// which it finds equal to nothing, nor for the sign of 0.
func float(s string, bits int, dictionary bool) (float64, error) {
	f, err := strconv.ParseFloat(s, bits)
	mantissa, _, _ := strings.Cut(strings.ToLower(s), "e")
	switch {
	case err != nil:
		return 0, err
	case strings.ContainsAny(s, "_xX"): // Go's, and not Postgres's
		return 0, errRange
	case f == 0 && strings.ContainsAny(mantissa, "123456789"):
		return 0, errRange
	case dictionary && (math.IsNaN(f) || f == 0 && math.Signbit(f)):
		return 0, errRange
	}
	return f, nil
}

// clientReads says whether the client library takes an Enum for what it is. Of names with escapes it gets right only one, in the last name;
// others it mixes up, or panics, in a goroutine of its own (clickhouse-go 2.50, extractEnumNamedValues).
func clientReads(kind string) bool {
	_, names, _ := strings.Cut(kind, "Enum")
	first := strings.IndexByte(names, '\\')
	if first < 0 {
		return true
	}
	escaped, rest := names[first+1], names[first+2:]
	return (escaped == '\'' || escaped == '\\') && !strings.Contains(rest, `\`) && strings.Count(rest, "'") == 1
}

var errRange = errors.New("out of range")

func unwrap(kind, wrapper string) (inner string, ok bool) {
	inner, ok = strings.CutPrefix(kind, wrapper+"(")
	return strings.TrimSuffix(inner, ")"), ok
}

// enumName matches the name of an Enum's value, as ClickHouse writes it.
var enumName = regexp.MustCompile(`'((?:[^'\\]|\\.)*)' = `)

// enumNames are the names of an Enum's values: 'a' = 1, 'it\'s' = 2.
func enumNames(arguments string) []string {
	var names []string
	for _, match := range enumName.FindAllStringSubmatch(arguments, -1) {
		names = append(names, strings.NewReplacer(`\'`, `'`, `\\`, `\`).Replace(match[1]))
	}
	return names
}

// integer reads whole numbers of the width that the type's name ends with.
func integer(name string) func(string) (any, error) {
	unsigned := strings.HasPrefix(name, "U")
	bits, _ := strconv.Atoi(name[strings.Index(name, "t")+1:]) // of a name from reader's list
	return func(s string) (any, error) {
		switch s { // a boolean
		case "t":
			s = "1"
		case "f":
			s = "0"
		}
		if len(s) > longestNumber {
			return nil, errRange
		}
		n, ok := new(big.Int).SetString(s, 10)
		if !ok {
			return nil, errRange
		}
		low, high := new(big.Int), new(big.Int).Lsh(big.NewInt(1), uint(bits))
		if !unsigned {
			high.Rsh(high, 1)
			low.Neg(high)
		}
		if n.Cmp(low) < 0 || n.Cmp(high) >= 0 {
			return nil, errRange
		}
		switch name {
		case "Int8":
			return int8(n.Int64()), nil
		case "Int16":
			return int16(n.Int64()), nil
		case "Int32":
			return int32(n.Int64()), nil
		case "Int64":
			return n.Int64(), nil
		case "UInt8":
			return uint8(n.Uint64()), nil
		case "UInt16":
			return uint16(n.Uint64()), nil
		case "UInt32":
			return uint32(n.Uint64()), nil
		case "UInt64":
			return n.Uint64(), nil
		}
		return n, nil
	}
}

// longestNumber, in characters, is longer than any that Postgres prints of a numeric that fits, with all its zeros. To read one of megabytes, of a
// text, takes minutes.
const longestNumber = 20_000

// decimals reads numbers that have the digits of a Decimal(precision, scale), before and after the point: none is cut off.
func decimals(arguments string) func(string) (any, error) {
	var precision, scale int32
	_, err := fmt.Sscanf(strings.ReplaceAll(arguments, " ", ""), "%d,%d", &precision, &scale)
	const most = 76 // digits, what ClickHouse has; a number of billions of digits would take for ever
	if err != nil || precision < 1 || precision > most || scale < 0 || scale > precision {
		return nil
	}
	limit := decimal.New(1, precision-scale)
	return func(s string) (any, error) {
		if len(s) > longestNumber {
			return nil, errRange
		}
		d, err := decimal.NewFromString(s)
		if err != nil || !d.Truncate(scale).Equal(d) || !d.Abs().LessThan(limit) {
			return nil, errRange
		}
		return d, nil
	}
}

// times reads a timestamptz, timestamp or date from first up to end, in UTC.
func times(layout string, first, end time.Time) func(string) (any, error) {
	layouts := []string{"2006-01-02 15:04:05.999999999-07", "2006-01-02 15:04:05.999999999", "2006-01-02"}
	if layout != "" {
		layouts = []string{layout}
	}
	return func(s string) (any, error) {
		for _, layout := range layouts {
			if t, err := time.Parse(layout, s); err == nil && !t.Before(first) && t.Before(end) {
				return t.UTC(), nil
			}
		}
		return nil, errRange
	}
}
