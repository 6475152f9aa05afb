// Package share is what a stream carries of an outbox, where several streams carry it together: the rows whose ids leave one remainder.
package share

import (
	"fmt"
	"regexp"
	"strconv"
	"strings"
)

// most is how many streams an outbox can have. Each has a slot, and so a walsender that reads all WAL.
const most = 64

// Share is one of some equal parts of an outbox. The zero value is the whole.
type Share struct {
	index, of int64
}

// UnmarshalText reads index/of, as 0/4: the rows whose id leaves 0 when divided by 4. An empty text is the whole.
func (s *Share) UnmarshalText(text []byte) error {
	if len(text) == 0 {
		*s = Share{}
		return nil
	}
	index, of, found := strings.Cut(string(text), "/")
	read, ok := parse(index, of)
	if !found || !ok || read.String() != string(text) {
		return fmt.Errorf("%q is no share such as 0/4 to 3/4, of 2 to %d", text, most)
	}
	*s = read
	return nil
}

func parse(index, of string) (Share, bool) {
	var s Share
	var err error
	if s.index, err = strconv.ParseInt(index, 10, 64); err != nil {
		return Share{}, false
	}
	if s.of, err = strconv.ParseInt(of, 10, 64); err != nil {
		return Share{}, false
	}
	return s, s.of >= 2 && s.of <= most && s.index >= 0 && s.index < s.of
}

// Whole says whether it is the whole outbox.
func (s Share) Whole() bool { return s.of == 0 }

// String is index/of, or empty for the whole.
func (s Share) String() string {
	if s.Whole() {
		return ""
	}
	return fmt.Sprintf("%d/%d", s.index, s.of)
}

// Where is the SQL of a condition that the rows of this share meet; id is the SQL of their id.
func (s Share) Where(id string) string {
	if s.Whole() {
		return "true"
	}
	return fmt.Sprintf("%s %% %d = %d", id, s.of, s.index)
}

// Overlaps says whether a row may belong to both.
func (s Share) Overlaps(other Share) bool {
	if s.Whole() || other.Whole() {
		return true
	}
	common := s.of // with other.of: the greatest divisor of both
	for rest := other.of; rest != 0; {
		common, rest = rest, common%rest
	}
	return s.index%common == other.index%common
}

// filter is the condition of Where(id) as Postgres prints it, whatever the type of the id.
var filter = regexp.MustCompile(`^\(\(id % \(?(\d+)\)?(?:::bigint)?\) = \(?(\d+)\)?(?:::bigint)?\)$`)

// OfFilter is the share that a publication's row filter means, as pg_get_expr prints it; an empty one means the whole. ok is false for
// any other filter.
func OfFilter(printed string) (s Share, ok bool) {
	if printed == "" {
		return Share{}, true
	}
	match := filter.FindStringSubmatch(printed)
	if match == nil {
		return Share{}, false
	}
	return parse(match[2], match[1])
}
