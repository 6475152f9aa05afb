package sink

import (
	"fmt"
	"math/big"
	"net/netip"
	"slices"
	"strings"
	"testing"

	"github.com/google/uuid"
	"github.com/shopspring/decimal"
)

// FuzzReader holds that a carried value is what the text in Postgres shows, or is refused.
func FuzzReader(f *testing.F) {
	kinds := []string{
		"String", "Nullable(String)", "LowCardinality(Nullable(String))", "FixedString(4)", "Bool", "Int8", "UInt8", "Int64", "UInt64", "Int256",
		"UInt256", "Float32", "Float64", "Decimal(9, 2)", "Decimal(76, 38)", "UUID", "IPv4", "IPv6", `Enum8('a' = 1, 'it\'s' = 2, 'c\\' = 3)`, "Date",
		"Date32", "DateTime", "DateTime64(6)",
	}
	for i, text := range []string{
		"x", "", "t", "127", "-128", "18446744073709551615", "+5", "1_000", "-1234567.89", "1e30", "1e999999999", "1e-999999999", "NaN", "Infinity",
		"6ba7b810-9dad-11d1-80b4-00c04fd430c8", "6ba7b8109dad11d180b400c04fd430c8", "x6ba7b810-9dad-11d1-80b4-00c04fd430c8x", "192.0.2.7", "2001:db8::1%eth0", "it's", "s", `c\`, "2026-03-14", "2026-03-14 15:09:26.535897+00",
	} {
		for kind := range kinds {
			f.Add(kind, text)
		}
		f.Add(i, text)
	}
	f.Fuzz(func(t *testing.T, choice int, text string) {
		if choice < 0 || choice >= len(kinds) {
			return
		}
		kind := kinds[choice]
		read, _ := reader(kind)
		value, err := read(text)
		if err != nil {
			return
		}
		same := true
		switch v := value.(type) {
		case string:
			same = v == text && (!strings.HasPrefix(kind, "Enum") || slices.Contains([]string{"a", "it's", `c\`}, v))
		case decimal.Decimal:
			want, ok := new(big.Rat).SetString(text)
			same = ok && want.Cmp(v.Rat()) == 0
		case netip.Addr:
			same = v == netip.AddrFrom16(v.As16()) || v == netip.AddrFrom16(v.As16()).Unmap() // nothing that ClickHouse can't hold
		case uuid.UUID:
			same = strings.EqualFold(v.String(), text) || strings.EqualFold(strings.ReplaceAll(v.String(), "-", ""), text)
		case int8, int16, int32, int64, uint8, uint16, uint32, uint64, *big.Int:
			want, ok := new(big.Int).SetString(text, 10)
			same = ok && fmt.Sprint(v) == want.String() || text == "t" && fmt.Sprint(v) == "1" || text == "f" && fmt.Sprint(v) == "0"
		}
		if !same {
			t.Errorf("%q for a %s is read as %v", text, kind, value)
		}
	})
}
