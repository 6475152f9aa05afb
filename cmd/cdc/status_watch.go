package main

import (
	"context"
	"fmt"
	"io"
	"os"
	"strings"
	"time"

	"golang.org/x/term"

	"github.com/sluicebox/sluicebox/internal/cli"
)

// What a terminal is told. The other screen keeps what was there before; lines that are too long are cut instead of wrapped; each frame is
// drawn over the last one, and what is left of it is cleared, so that nothing flickers.
const (
	enterScreen = "\x1b[?1049h\x1b[?25l\x1b[?7l"
	leaveScreen = "\x1b[?7h\x1b[?25h\x1b[?1049l"
	toTop       = "\x1b[H"
	clearLine   = "\x1b[K"
	clearRest   = "\x1b[J"
)

// watch shows what look gives, again and again until ctx is done: in place on a terminal, one after the other elsewhere and if each is a
// line. The first look must succeed; later ones may fail and are tried again, which a terminal shows and elsewhere standard error.
func watch(ctx context.Context, out *os.File, interval time.Duration, lines bool, look func(context.Context) (string, error)) error {
	text, err := look(ctx)
	if err != nil {
		return err
	}
	show, end := appendTo(out, lines), func() {}
	if isTerminal(out) && !lines {
		show, end = drawOn(out)
	}
	defer end()
	tick := time.NewTicker(interval)
	defer tick.Stop()
	for {
		if err := show(text, err); err != nil {
			return fmt.Errorf("print the status: %w", err)
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			return ctx.Err()
		}
		text, err = look(ctx)
		if ctx.Err() != nil {
			return ctx.Err()
		}
	}
}

// appendTo writes one look after the other.
func appendTo(out io.Writer, lines bool) func(text string, err error) error {
	first := true
	return func(text string, err error) error {
		if err != nil {
			_, err = fmt.Fprintf(os.Stderr, "cdc: %s: %v\n", cli.Stamp(time.Now()), err)
			return err
		}
		if !first && !lines {
			text = "\n" + text
		}
		first = false
		_, err = io.WriteString(out, text)
		return err
	}
}

// drawOn draws on the other screen of a terminal. end goes back to the first, and leaves the newest look there.
func drawOn(out *os.File) (show func(text string, err error) error, end func()) {
	last := ""
	show = func(text string, err error) error {
		frame := toTop
		if last == "" {
			frame = enterScreen + toTop
		}
		if err != nil {
			text = paint(out, red, "no answer at "+cli.Stamp(time.Now())+" UTC: "+cli.OneLine(err.Error(), 0)) + "\n\nbefore that:\n" + last
		} else {
			last = text
		}
		rows := strings.Split(strings.TrimRight(text, "\n"), "\n")
		if _, height, err := term.GetSize(int(out.Fd())); err == nil && height > 0 && len(rows) > height {
			rows = rows[:height]
		}
		_, err = io.WriteString(out, frame+strings.Join(rows, clearLine+"\n")+clearLine+clearRest)
		return err
	}
	end = func() { _, _ = io.WriteString(out, leaveScreen+last) } // a terminal that is gone has nothing to be restored
	return show, end
}
