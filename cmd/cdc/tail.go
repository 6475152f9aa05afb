package main

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"os"
	"strings"
	"time"
	"unicode"
	"unicode/utf16"

	"github.com/rs/zerolog"
	"golang.org/x/term"
	"golang.org/x/text/width"

	"github.com/sluicebox/sluicebox/internal/cli"
	"github.com/sluicebox/sluicebox/internal/ledger"
)

type tailCommand struct {
	postgres
	cli.Log

	Last int64    `short:"n" default:"10" min:"0" max:"10000" help:"Begin with so many events that arrived before."`
	Type []string `sep:"none" placeholder:"TYPE" help:"Only events of this type; may be given several times."`
	JSON bool     `name:"json" help:"Print each event as a line of JSON, whole."`
}

// Help is shown by cdc tail --help.
func (*tailCommand) Help() string {
	return `Shows each event once the daemon has confirmed that ClickHouse holds it and has marked it, in the order of the batches, and within a
batch in that of ids. It reads the ledger and the outbox in Postgres; it needs no ClickHouse, and touches neither the slot nor the daemon.
An event that is delivered again, after a repair, is shown again. Events on their way are not shown: cdc status tells of them.

What events contain appears on the screen, and wherever it is recorded. Control characters don't reach it; on a terminal each event is
cut to one line. Ctrl-C ends it with 0.

    cdc tail
    cdc tail --last 0 --type 'user has been created'
    cdc tail --json | jq -c '[.id, .event_context.email]'`
}

// Run shows events until ctx is done.
func (c *tailCommand) Run(ctx context.Context) error {
	return c.operate(ctx, func(l *ledger.Ledger) error {
		log := c.Logger(os.Stderr)
		leads, err := l.Leads(ctx)
		if err != nil {
			return err
		}
		if !leads {
			log.Warn().Msg("no daemon leads; nothing arrives until one does")
		}
		after, surplus, err := l.TailStart(ctx, c.Last)
		if err != nil {
			return err
		}
		t := &tail{ledger: l, types: c.Type, out: bufio.NewWriter(os.Stdout), surplus: surplus, write: printLine, width: columns(os.Stdout)}
		if c.JSON {
			t.write, t.width = printObject, 0
		}
		return t.follow(ctx, after, log)
	})
}

// tail shows the events of one batch after the other.
type tail struct {
	ledger  *ledger.Ledger
	types   []string
	out     *bufio.Writer
	write   func(w *bufio.Writer, e *ledger.DeliveredEvent, width int) error
	width   int   // of the terminal, in columns; 0: there is none, or events are shown whole
	surplus int64 // events to pass over before the first
}

func (t *tail) follow(ctx context.Context, after int64, log zerolog.Logger) error {
	const poll = 250 * time.Millisecond
	tick := time.NewTicker(poll)
	defer tick.Stop()
	for {
		batch, err := t.ledger.NextSettled(ctx, after)
		if err != nil {
			return err
		}
		if batch == nil {
			select {
			case <-tick.C:
				continue
			case <-ctx.Done():
				return ctx.Err()
			}
		}
		if missed := batch.Seq - after - 1; after > 0 && missed > 0 {
			log.Warn().Int64("batches", missed).Msg("the ledger has forgotten batches before they were shown; their events are left out")
		}
		if err := t.show(ctx, batch); err != nil {
			return err
		}
		after = batch.Seq
	}
}

// show prints a batch a page at a time. No query is open while a terminal takes its time, which would keep vacuum from its work.
func (t *tail) show(ctx context.Context, batch *ledger.Settled) error {
	const page = 200
	var ids []int64
	for _, r := range batch.Ranges {
		passed := min(t.surplus, r.Last-r.First+1)
		t.surplus -= passed
		for id := r.First + passed; id <= r.Last; id++ {
			if ids = append(ids, id); len(ids) < page {
				continue
			}
			if err := t.showPage(ctx, ids); err != nil {
				return err
			}
			ids = ids[:0]
		}
	}
	if len(ids) == 0 {
		return nil
	}
	return t.showPage(ctx, ids)
}

func (t *tail) showPage(ctx context.Context, ids []int64) error {
	events, err := t.ledger.DeliveredEvents(ctx, ids, t.types, t.width) // no character takes less than a column but for those that are hidden
	if err != nil {
		return err
	}
	for i := range events {
		if err := t.write(t.out, &events[i], t.width); err != nil {
			return fmt.Errorf("print event %d: %w", events[i].ID, err)
		}
	}
	if err := t.out.Flush(); err != nil {
		return fmt.Errorf("print events: %w", err)
	}
	return nil
}

func printLine(w *bufio.Writer, e *ledger.DeliveredEvent, width int) error {
	line := cli.OneLine(fmt.Sprintf("%s  %d  %s  %s", e.Time.Format("2006-01-02 15:04:05.000"), e.ID, e.Type, e.Context), 0)
	if width > 0 {
		line = fit(line, width)
	}
	_, err := w.WriteString(line + "\n")
	return err
}

func printObject(w *bufio.Writer, e *ledger.DeliveredEvent, _ int) error {
	if !json.Valid(e.Context) { // the column may be a text of any kind
		text, err := json.Marshal(string(e.Context))
		if err != nil {
			return err
		}
		e.Context = text
	}
	var text bytes.Buffer
	encoder := json.NewEncoder(&text)
	encoder.SetEscapeHTML(false)
	if err := encoder.Encode(e); err != nil {
		return err
	}
	_, err := w.WriteString(escapeControls(strings.TrimSuffix(text.String(), "\n")) + "\n")
	return err
}

// escapeControls writes the characters that could do something to a terminal as JSON escapes. They occur in strings only, but for the ends of
// lines, which do not occur there.
func escapeControls(object string) string {
	harmful := func(r rune) bool { return r != '\n' && cli.Harmful(r) }
	if !strings.ContainsFunc(object, harmful) {
		return object
	}
	var text strings.Builder
	for _, r := range object {
		if !harmful(r) {
			text.WriteRune(r)
			continue
		}
		for _, unit := range utf16.AppendRune(nil, r) {
			fmt.Fprintf(&text, `\u%04x`, unit)
		}
	}
	return text.String()
}

// columns is the width of a terminal; 0: it is none.
func columns(file *os.File) int {
	width, _, err := term.GetSize(int(file.Fd()))
	if err != nil {
		return 0
	}
	return width
}

// fit cuts a line to so many columns of a terminal.
func fit(line string, columns int) string {
	used, cut := 0, 0
	for i, r := range line {
		if used < columns { // so that the mark still fits
			cut = i
		}
		used += columnsOf(r)
	}
	if used <= columns {
		return line
	}
	return line[:cut] + "…"
}

// columnsOf is how wide a character is: East Asian ones and most pictures take two columns.
func columnsOf(r rune) int {
	if kind := width.LookupRune(r).Kind(); kind == width.EastAsianWide || kind == width.EastAsianFullwidth {
		return 2
	}
	if unicode.Is(unicode.Mn, r) { // drawn onto the one before
		return 0
	}
	return 1
}
