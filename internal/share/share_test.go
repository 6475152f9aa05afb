package share_test

import (
	"testing"

	"github.com/sluicebox/sluicebox/internal/share"
)

func read(t *testing.T, text string) share.Share {
	t.Helper()
	var s share.Share
	if err := s.UnmarshalText([]byte(text)); err != nil {
		t.Fatal(err)
	}
	return s
}

func TestText(t *testing.T) {
	t.Parallel()
	for _, text := range []string{"", "0/2", "1/2", "3/4", "63/64"} {
		if got := read(t, text).String(); got != text {
			t.Errorf("%q is read as %q", text, got)
		}
	}
	for _, text := range []string{"1", "/", "2/2", "-1/2", "0/1", "0/0", "0/65", "00/2", "0/2 ", "0/2/2", "a/b", "0.5/2", "9223372036854775808/2"} {
		if err := new(share.Share).UnmarshalText([]byte(text)); err == nil {
			t.Errorf("%q is taken for a share", text)
		}
	}
}

func TestWhere(t *testing.T) {
	t.Parallel()
	if got := read(t, "").Where("o.id"); got != "true" {
		t.Errorf("the whole is WHERE %s", got)
	}
	if got := read(t, "1/4").Where("o.id"); got != "o.id % 4 = 1" {
		t.Errorf("1/4 is WHERE %s", got)
	}
}

// TestOverlaps holds Overlaps against a look at the ids.
func TestOverlaps(t *testing.T) {
	t.Parallel()
	texts := []string{"", "0/2", "1/2", "0/3", "2/3", "0/4", "1/4", "2/4", "3/4", "5/6", "1/6"}
	for _, a := range texts {
		for _, b := range texts {
			want := false
			for id := range int64(12) {
				want = want || holds(t, a, id) && holds(t, b, id)
			}
			if got := read(t, a).Overlaps(read(t, b)); got != want {
				t.Errorf("%q overlaps %q: %t", a, b, got)
			}
		}
	}
}

func holds(t *testing.T, text string, id int64) bool {
	t.Helper()
	if text == "" {
		return true
	}
	index, of := int64(text[0]-'0'), int64(text[2]-'0')
	return id%of == index
}

func TestOfFilter(t *testing.T) {
	t.Parallel()
	for printed, want := range map[string]string{
		"":                                   "",
		"((id % (4)::bigint) = 0)":           "0/4",
		"((id % 4) = 3)":                     "3/4",
		"((id % (4)::bigint) = (1)::bigint)": "1/4",
	} {
		if got, ok := share.OfFilter(printed); !ok || got.String() != want {
			t.Errorf("%s is read as %q, %t", printed, got, ok)
		}
	}
	for _, printed := range []string{
		"((id % (4)::bigint) = 4)", "((id % (4)::bigint) <> 0)", "((other % (4)::bigint) = 0)", "(id = 0)", "(((id % (4)::bigint) = 0) AND (id > 5))",
	} {
		if got, ok := share.OfFilter(printed); ok {
			t.Errorf("%s is taken for share %q", printed, got)
		}
	}
}
