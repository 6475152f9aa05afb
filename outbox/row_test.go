package outbox_test

import (
	"math"
	"slices"
	"testing"

	"github.com/sluicebox/sluicebox/outbox"
)

func TestPositionsAreInCommitOrder(t *testing.T) {
	t.Parallel()
	inOrder := []outbox.Position{{0, 0}, {1, 0}, {1, 1}, {1, math.MaxUint32}, {2, 1}, {1 << 40, 0}, {math.MaxUint64, 7}}
	for i, p := range inOrder {
		for j, q := range inOrder {
			if got, want := p.Compare(q), min(max(i-j, -1), 1); got != want {
				t.Errorf("%s compared with %s is %d, want %d", p, q, got, want)
			}
		}
	}
	if !slices.IsSortedFunc(inOrder, outbox.Position.Compare) {
		t.Error("Compare does not sort")
	}
}

func TestPositionString(t *testing.T) {
	t.Parallel()
	if got := (outbox.Position{CommitLSN: 0x16B374D848, Ordinal: 3}).String(); got != "16/B374D848+3" {
		t.Error(got)
	}
	if got := (outbox.Position{}).String(); got != "0/0+0" {
		t.Error(got)
	}
}
