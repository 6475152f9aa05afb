package main

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"text/tabwriter"

	"github.com/sluicebox/sluicebox/internal/cli"
	"github.com/sluicebox/sluicebox/internal/ledger"
)

type quarantineCommand struct {
	List  quarantineList  `cmd:"" help:"List them, newest first."`
	Show  quarantineShow  `cmd:"" help:"Everything about some of them, with the content of the event."`
	Retry quarantineRetry `cmd:"" help:"Ask the daemon to deliver them again."`
	Drop  quarantineDrop  `cmd:"" help:"Give them up for good."`
}

// Help is shown by cdc quarantine --help.
func (*quarantineCommand) Help() string {
	return `A row that ClickHouse can't hold, or refuses because of what is in it, is put aside with the reason, so that the rows around
it are delivered. Its outbox row stays unprocessed. See what is there, mend what is wrong, and ask for it again:

    cdc quarantine list
    cdc quarantine show 4711
    psql -c "UPDATE event_outbox SET event_date_time = now() WHERE id = 4711"
    cdc quarantine retry 4711

or give it up with cdc quarantine drop 4711.`
}

type quarantineList struct {
	postgres

	All   bool `help:"Those that were dropped too."`
	JSON  bool `help:"Print JSON." name:"json"`
	Limit int  `help:"Rows to list at most." default:"100" min:"1" max:"100000"`
}

// Help is shown by cdc quarantine list --help.
func (*quarantineList) Help() string {
	return `A row is held until it is retried or dropped. "retry requested" means that the daemon has not come to it yet.

    cdc quarantine list
    cdc quarantine list --all --limit 1000 --json | jq '.rows[] | select(.reason | test("JSON")) | .id'`
}

// Run prints the list.
func (c *quarantineList) Run(ctx context.Context) error {
	return c.operate(ctx, func(l *ledger.Ledger) error {
		listed, total, err := l.Quarantine(ctx, c.All, c.Limit)
		if err != nil {
			return err
		}
		if c.JSON {
			list := struct {
				Rows  []listedRow `json:"rows"`
				Total int64       `json:"total"`
			}{make([]listedRow, len(listed)), total}
			for i := range listed {
				list.Rows[i] = listedRow{&listed[i], listed[i].State()}
			}
			return printJSON(os.Stdout, list)
		}
		return c.print(os.Stdout, listed, total)
	})
}

// listedRow is a row in quarantine with its state in words.
type listedRow struct {
	*ledger.Quarantined
	State string `json:"state"`
}

func (c *quarantineList) print(out *os.File, listed []ledger.Quarantined, total int64) error {
	limit := 0
	if isTerminal(out) {
		limit = 60 // characters of a reason: with the other columns about the width of a terminal
	}
	if len(listed) > 0 {
		table := tabwriter.NewWriter(out, 0, 0, 2, ' ', 0)
		_, _ = fmt.Fprintln(table, "ID\tEVENT TYPE\tSINCE (UTC)\tSTATE\tREASON") // Flush has the error
		for i := range listed {
			q := &listed[i]
			_, _ = fmt.Fprintf(table, "%d\t%s\t%s\t%s\t%s\n",
				q.ID, eventType(q), cli.Stamp(q.CreatedAt), q.State(), cli.OneLine(q.Reason, limit))
		}
		if err := table.Flush(); err != nil {
			return fmt.Errorf("print the list: %w", err)
		}
	}
	more := ""
	if total > int64(len(listed)) {
		more = fmt.Sprintf("; the newest %d are listed, --limit lists more", len(listed))
	}
	if _, err := fmt.Fprintf(out, "%s in quarantine%s\n", cli.Rows(total), more); err != nil {
		return fmt.Errorf("print the list: %w", err)
	}
	return nil
}

func eventType(q *ledger.Quarantined) string {
	if q.EventType == "" {
		return "(outbox row is gone)"
	}
	return cli.OneLine(q.EventType, 40)
}

type quarantineShow struct {
	postgres

	IDs  []int64 `arg:"" name:"id" help:"Ids of the rows."`
	JSON bool    `help:"Print JSON." name:"json"`
}

// Help is shown by cdc quarantine show --help.
func (*quarantineShow) Help() string {
	return `Prints the content of the event as it is in the outbox: mind where you send it.

    cdc quarantine show 4711
    cdc quarantine show 4711 4712 --json`
}

// Run prints the rows.
func (c *quarantineShow) Run(ctx context.Context) error {
	return c.operate(ctx, func(l *ledger.Ledger) error {
		found, err := l.Quarantined(ctx, c.IDs)
		if err != nil {
			return err
		}
		if c.JSON {
			list := make([]listedRow, len(found))
			for i := range found {
				list[i] = listedRow{&found[i], found[i].State()}
			}
			return printJSON(os.Stdout, list)
		}
		for i := range found {
			if err := printQuarantined(os.Stdout, &found[i], i == 0); err != nil {
				return fmt.Errorf("print row %d: %w", found[i].ID, err)
			}
		}
		return nil
	})
}

func printQuarantined(out io.Writer, q *ledger.Quarantined, first bool) error {
	var text bytes.Buffer
	if !first {
		text.WriteString("\n")
	}
	table := tabwriter.NewWriter(&text, 0, 0, 2, ' ', 0)
	line := func(name, value string) { _, _ = fmt.Fprintf(table, "%s\t%s\n", name, value) } // to memory
	line("id", fmt.Sprint(q.ID))
	line("state", q.State())
	line("reason", cli.OneLine(q.Reason, 0))
	line("in quarantine since", cli.Stamp(q.CreatedAt)+" UTC")
	if q.RequestedAt != nil {
		line("retry requested", cli.Stamp(*q.RequestedAt)+" UTC")
	}
	if q.DroppedAt != nil {
		line("dropped", cli.Stamp(*q.DroppedAt)+" UTC")
	}
	line("position", fmt.Sprintf("%s, row %d of its transaction", q.LSN, q.Ordinal))
	if e := q.Event; e == nil {
		line("event", "the outbox row is gone; nothing is left to deliver")
	} else {
		line("event_type", optional(e.Type))
		line("event_date_time", optional(e.Time))
		line("environment", optional(e.Environment))
		line("metadata_version", optional(e.MetadataVersion))
		line("trace_context", optional(e.TraceContext))
		line("processed", fmt.Sprint(e.Processed))
	}
	if err := table.Flush(); err != nil {
		return err
	}
	if q.Event != nil {
		text.WriteString("event_context:\n")
		var event bytes.Buffer
		if err := json.Indent(&event, q.Event.Context, "", "  "); err != nil {
			return err
		}
		text.WriteString(escapeControls(event.String()) + "\n")
	}
	_, err := out.Write(text.Bytes())
	return err
}

// optional writes a value of the outbox that may be null.
func optional[T any](value *T) string {
	if value == nil {
		return "null"
	}
	return cli.OneLine(fmt.Sprint(*value), 0)
}
