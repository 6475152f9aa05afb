package ledger

import (
	"bytes"
	"math"
	"slices"
	"testing"

	"github.com/google/go-cmp/cmp"
	"pgregory.net/rapid"

	"github.com/sluicebox/sluicebox/outbox"
)

func TestPlaces(t *testing.T) {
	t.Parallel()
	t.Run("what was planned is what is read back, in order", func(t *testing.T) {
		t.Parallel()
		rapid.Check(t, func(t *rapid.T) {
			rows := rapid.SliceOf(rapid.Custom(func(t *rapid.T) outbox.Row {
				return outbox.Row{
					ID:       rapid.Int64Range(0, math.MaxInt64).Draw(t, "id"),
					Position: outbox.Position{CommitLSN: rapid.Uint64().Draw(t, "lsn"), Ordinal: rapid.Uint32().Draw(t, "ordinal")},
				}
			})).Draw(t, "rows")
			places, err := decodePlaces(encodePlaces(rows))
			if err != nil {
				t.Fatal(err)
			}
			var got []outbox.Row
			for _, p := range places {
				got = append(got, outbox.Row{ID: p.id, Position: p.at})
			}
			if len(rows) > 0 && !cmp.Equal(rows, got) || len(rows) != len(got) {
				t.Fatal(cmp.Diff(rows, got))
			}
		})
	})
	t.Run("neighbours take three bytes a row", func(t *testing.T) {
		t.Parallel()
		rows := make([]outbox.Row, 1000)
		for i := range rows {
			rows[i] = outbox.Row{ID: int64(i + 1), Position: outbox.Position{CommitLSN: 1 << 40, Ordinal: uint32(i + 1)}}
		}
		if got := len(encodePlaces(rows)); got > 3*len(rows)+16 {
			t.Errorf("%d rows take %d bytes", len(rows), got)
		}
	})
	t.Run("damage is an error", func(t *testing.T) {
		t.Parallel()
		whole := encodePlaces([]outbox.Row{{ID: 1 << 40, Position: outbox.Position{CommitLSN: 1 << 50, Ordinal: 1 << 20}}})
		for n := 1; n < len(whole); n++ {
			if _, err := decodePlaces(whole[:n]); err == nil {
				t.Errorf("the first %d of %d bytes were read without an error", n, len(whole))
			}
		}
	})
}

func TestRun(t *testing.T) {
	t.Parallel()
	rapid.Check(t, func(t *rapid.T) {
		low := rapid.SampledFrom([]int64{0, 1, 1 << 40, math.MaxInt64 - 6, math.MinInt64, -3}).Draw(t, "low")
		ids := rapid.SliceOfN(rapid.Int64Range(low, low+6), 0, 8).Draw(t, "ids")
		sorted := slices.Sorted(slices.Values(ids))
		want := len(sorted) > 0
		for i := 1; i < len(sorted); i++ {
			want = want && sorted[i] == sorted[i-1]+1
		}
		first, last, ok := run(ids)
		if ok != want || ok && (first != sorted[0] || last != sorted[len(sorted)-1]) {
			t.Errorf("%v: %d to %d, %v; want %v", ids, first, last, ok, want)
		}
	})
	if _, _, ok := run([]int64{math.MinInt64, math.MaxInt64}); ok {
		t.Error("the two ends of all numbers are a run")
	}
}

func TestMultirange(t *testing.T) {
	t.Parallel()
	got := multirange([]int64{7, 3, 1, 2, 9, 8})
	var pairs [][2]int64
	for _, r := range got {
		pairs = append(pairs, [2]int64{r.Lower.Int64, r.Upper.Int64})
	}
	if diff := cmp.Diff([][2]int64{{1, 4}, {7, 10}}, pairs); diff != "" {
		t.Error(diff)
	}
}

// FuzzDecodePlaces holds that what is read is written again as the same places.
func FuzzDecodePlaces(f *testing.F) {
	f.Add([]byte{})
	f.Add(encodePlaces([]outbox.Row{{ID: 7, Position: outbox.Position{CommitLSN: 1 << 40, Ordinal: 3}}, {ID: 5, Position: outbox.Position{CommitLSN: 1 << 41}}}))
	f.Add([]byte{0x80})
	f.Add(bytes.Repeat([]byte{0xff}, 11))
	f.Fuzz(func(t *testing.T, data []byte) {
		places, err := decodePlaces(data)
		if err != nil {
			return
		}
		rows := make([]outbox.Row, len(places))
		for i, p := range places {
			rows[i] = outbox.Row{ID: p.id, Position: p.at}
		}
		again, err := decodePlaces(encodePlaces(rows))
		if err != nil || !slices.Equal(places, again) {
			t.Errorf("%v is read again as %v, %v", places, again, err)
		}
	})
}
