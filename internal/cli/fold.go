package cli

import (
	"bytes"
	"encoding/json"
	"io"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/rs/zerolog"
)

const (
	// foldFirst is how long a repeated error is left out at first; each time it is doubled, up to foldMost, so that somebody who looks at the
	// last minutes of a log still sees it.
	foldFirst = 15 * time.Second
	foldMost  = 10 * time.Minute
	// foldForget is how long an error must not have come for the next one to be news. It is above the longest wait between two tries.
	foldForget = time.Minute
	// foldKinds bounds the memory: that many different errors are known at a time.
	foldKinds = 64
)

// fold passes lines of a log on, JSON objects, but for errors that repeat. zerolog's own samplers don't see what a line says, and its hooks not
// the error: so this is a writer.
type fold struct {
	next io.Writer

	mu    sync.Mutex
	kinds map[string]*repeats
}

// repeats are the lines of one error.
type repeats struct {
	seen   time.Time // the last one
	told   time.Time // the last one that was passed on
	wait   time.Duration
	folded int // since then
}

func newFold(next io.Writer) *fold { return &fold{next: next, kinds: map[string]*repeats{}} }

// Write passes a line on.
func (f *fold) Write(line []byte) (int, error) { return f.next.Write(line) }

// WriteLevel passes a line on unless it is a warning or an error that was told lately.
func (f *fold) WriteLevel(level zerolog.Level, line []byte) (int, error) {
	if level != zerolog.WarnLevel && level != zerolog.ErrorLevel {
		return f.next.Write(line)
	}
	kind := kindOf(line)
	if kind == "" {
		return f.next.Write(line)
	}
	folded, tell := f.note(kind, time.Now())
	switch {
	case !tell:
		return len(line), nil
	case folded > 0:
		if _, err := f.next.Write(withField(line, "folded", folded)); err != nil {
			return 0, err
		}
		return len(line), nil
	default:
		return f.next.Write(line)
	}
}

// note says whether an error is to be told now, and how many of its kind were not since the last that was.
func (f *fold) note(kind string, now time.Time) (folded int, tell bool) {
	f.mu.Lock()
	defer f.mu.Unlock()
	r := f.kinds[kind]
	if r == nil {
		f.makeRoom()
		r = &repeats{}
		f.kinds[kind] = r
	}
	news := now.Sub(r.seen) > foldForget
	r.seen = now
	switch {
	case news:
		r.wait = foldFirst
	case now.Sub(r.told) < r.wait:
		r.folded++
		return 0, false
	default:
		r.wait = min(2*r.wait, foldMost)
	}
	folded, r.folded, r.told = r.folded, 0, now
	return folded, true
}

// makeRoom forgets the error that has not come for longest if there are too many.
func (f *fold) makeRoom() {
	if len(f.kinds) < foldKinds {
		return
	}
	var oldest string
	for kind, r := range f.kinds {
		if oldest == "" || r.seen.Before(f.kinds[oldest].seen) {
			oldest = kind
		}
	}
	delete(f.kinds, oldest)
}

// kindOf is what makes two lines the same error: message and error, but for numbers; empty: the line tells of none.
func kindOf(line []byte) string {
	var said struct{ Message, Error string }
	if json.Unmarshal(line, &said) != nil || said.Error == "" {
		return ""
	}
	return strings.Map(func(r rune) rune {
		if r >= '0' && r <= '9' {
			return -1
		}
		return r
	}, said.Message+": "+said.Error)
}

// withField adds a number to a line.
func withField(line []byte, name string, n int) []byte {
	open := bytes.TrimSuffix(bytes.TrimRight(line, "\n"), []byte("}"))
	return append(strconv.AppendInt(append(bytes.Clone(open), `,"`+name+`":`...), int64(n), 10), "}\n"...)
}
