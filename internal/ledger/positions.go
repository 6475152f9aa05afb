package ledger

import (
	"encoding/binary"
	"errors"
	"slices"

	"github.com/sluicebox/sluicebox/outbox"
)

// place is a row's identity and its position.
type place struct {
	id int64
	at outbox.Position
}

// encodePlaces writes ids and positions in commit order, each as the difference from the one before: neighbours take three
// bytes a row. A batch of an earlier epoch must be sent again as the same rows to the byte, lsn and ordinal included, and those are
// nowhere in the outbox.
func encodePlaces(parts ...[]outbox.Row) []byte {
	var out []byte
	var last place
	for _, rows := range parts {
		out = slices.Grow(out, 4*len(rows)+16)
		for i := range rows {
			r := &rows[i]
			out = binary.AppendVarint(out, r.ID-last.id)
			out = binary.AppendVarint(out, int64(r.Position.CommitLSN-last.at.CommitLSN))
			out = binary.AppendVarint(out, int64(r.Position.Ordinal)-int64(last.at.Ordinal))
			last = place{r.ID, r.Position}
		}
	}
	return out
}

func decodePlaces(data []byte) ([]place, error) {
	var out []place
	var last place
	for len(data) > 0 {
		var diff [3]int64
		for i := range diff {
			v, n := binary.Varint(data)
			if n <= 0 {
				return nil, errors.New("the positions of a planned batch are damaged")
			}
			diff[i], data = v, data[n:]
		}
		last.id += diff[0]
		last.at.CommitLSN += uint64(diff[1])
		last.at.Ordinal = uint32(int64(last.at.Ordinal) + diff[2])
		out = append(out, last)
	}
	return out, nil
}
