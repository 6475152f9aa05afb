package main

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/dustin/go-humanize"

	"github.com/sluicebox/sluicebox/internal/cli"
	"github.com/sluicebox/sluicebox/internal/ledger"
	"github.com/sluicebox/sluicebox/internal/ops"
)

type statusCommand struct {
	postgres

	JSON     bool          `help:"Print JSON; with --watch, one document a line." name:"json"`
	Watch    bool          `help:"Show it anew again and again, until Ctrl-C."`
	Interval time.Duration `default:"2s" min:"200ms" max:"1h" help:"How often, with --watch."`
}

// Help is shown by cdc status --help.
func (*statusCommand) Help() string {
	return `One look at Postgres: who leads, how far delivery is, what the slot keeps, what is in quarantine, what went wrong lately.
It needs neither ClickHouse nor a daemon. The first line says how things are. Exit code 0 means that it could be read, whatever it says.

With --watch a terminal shows it in place, also that Postgres does not answer for a while; elsewhere one look follows the other. Ctrl-C
ends it with 0.

    cdc status
    cdc status --watch
    cdc status --json | jq -r .summary`
}

// Run prints the status.
func (c *statusCommand) Run(ctx context.Context) error {
	return c.operate(ctx, func(l *ledger.Ledger) error {
		look := func(ctx context.Context) (string, error) {
			s, err := l.Status(ctx)
			if err != nil {
				return "", err
			}
			return c.text(s)
		}
		if c.Watch {
			return watch(ctx, os.Stdout, c.Interval, c.JSON, look)
		}
		text, err := look(ctx)
		if err != nil {
			return err
		}
		if _, err := io.WriteString(os.Stdout, text); err != nil {
			return fmt.Errorf("print the status: %w", err)
		}
		return nil
	})
}

// text is what a look at the status prints.
func (c *statusCommand) text(s *ledger.Status) (string, error) {
	level, summary := ops.Summarize(s)
	if c.JSON {
		var text bytes.Buffer
		document := struct {
			Summary string `json:"summary"`
			*ledger.Status
		}{summary, s}
		if !c.Watch {
			err := printJSON(&text, document)
			return text.String(), err
		}
		encoder := json.NewEncoder(&text)
		encoder.SetEscapeHTML(false)
		err := encoder.Encode(document)
		return escapeControls(text.String()), err
	}
	table, err := statusTable(s)
	return paint(os.Stdout, colourOf(level), summary) + "\n\n" + table, err
}

func colourOf(level ops.Level) int {
	switch level {
	case ops.Trouble:
		return red
	case ops.Notice:
		return yellow
	case ops.Fine:
		return green
	default:
		return red
	}
}

// statusTable is all that the first line leaves out.
func statusTable(s *ledger.Status) (string, error) {
	var text bytes.Buffer
	table := tabwriter.NewWriter(&text, 0, 0, 2, ' ', 0)
	line := func(name, format string, args ...any) {
		_, _ = fmt.Fprintf(table, name+"\t"+format+"\n", args...) // to memory
	}
	line("stream", "%s, read at %s UTC", s.Slot, cli.Stamp(s.ReadAt))
	line("daemon", "%s", leaderText(s))
	line("phase", "%s", s.Phase)
	line("settled", "%s, row %d of its transaction", s.SettledLSN, s.SettledOrdinal)
	line("acknowledged", "%s", s.AckedLSN)
	line("server", "%s%s", s.ServerLSN, strings.Replace(ops.Behind(s), "; ", ", delivery is ", 1))
	line("slot", "%s", slotText(s.ReplicationSlot))
	line("planned", "%s", plannedText(s))
	if b := s.LastBatch; b != nil {
		line("last batch", "number %d, %s, %s ago", b.Seq, cli.Rows(b.Rows), cli.Span(s.ReadAt.Sub(b.SettledAt)))
	} else {
		line("last batch", "none yet")
	}
	line("unprocessed", "%s", ops.Unprocessed(s))
	line("quarantine", "%s held, %s dropped", cli.Rows(s.Held), humanize.Comma(s.Dropped))
	redelivery := "no requests"
	if s.OldestRequest != nil {
		redelivery = fmt.Sprintf("%s requested, the oldest %s ago", cli.Rows(s.Redeliveries), cli.Span(s.ReadAt.Sub(*s.OldestRequest)))
	}
	line("redelivery", "%s", redelivery)
	if len(s.Incidents) == 0 {
		line("incidents", "none")
	}
	if err := table.Flush(); err != nil {
		return "", err
	}
	if len(s.Incidents) == 0 {
		return text.String(), nil
	}
	text.WriteString("\n")
	table = tabwriter.NewWriter(&text, 0, 0, 2, ' ', 0)
	_, _ = fmt.Fprintln(table, "INCIDENT\tBEGAN (UTC)\tTOOK\tROWS\tGAP\tWHY")
	for i := range s.Incidents {
		n := &s.Incidents[i]
		took, found, gap := "open for "+cli.Span(s.ReadAt.Sub(n.BeganAt)), "-", "from "+n.FromLSN
		if n.EndedAt != nil {
			took = cli.Span(n.EndedAt.Sub(n.BeganAt))
		}
		if n.Rows != nil {
			found = humanize.Comma(*n.Rows)
		}
		if n.ToLSN != nil && n.GapBytes != nil {
			gap = fmt.Sprintf("%s (%s to %s)", cli.Size(*n.GapBytes), n.FromLSN, *n.ToLSN)
		}
		_, _ = fmt.Fprintf(table, "%s\t%s\t%s\t%s\t%s\t%s\n",
			cli.OneLine(n.Kind, 0), cli.Stamp(n.BeganAt), took, found, gap, cli.OneLine(n.Reason, 0))
	}
	if err := table.Flush(); err != nil {
		return "", err
	}
	return text.String(), nil
}

func leaderText(s *ledger.Status) string {
	if s.Leader.HeartbeatAt == nil {
		return "none has led yet"
	}
	holder, heard := cli.OneLine(s.Leader.Holder, 0), ", heard "+cli.Span(s.ReadAt.Sub(*s.Leader.HeartbeatAt))+" ago"
	switch {
	case s.Leader.Leads:
		return holder + " leads" + heard
	case holder != "":
		return "none leads; " + holder + " died or lost its session" + heard
	default:
		return "none leads; the last one ended by itself" + heard
	}
}

func slotText(slot *ledger.ReplicationSlot) string {
	if slot == nil {
		return "missing"
	}
	text := "not read"
	if slot.Active {
		text = "read"
	}
	text += ", confirmed " + slot.ConfirmedFlushLSN + ", keeps " + cli.Size(slot.RetainedBytes) + " of WAL, wal_status " + slot.WALStatus
	if slot.InvalidationReason != "" {
		text += ", invalidated by " + slot.InvalidationReason
	}
	if slot.SafeWALBytes != nil {
		text += ", may be lost after " + cli.Size(*slot.SafeWALBytes) + " more"
	}
	return text
}

func plannedText(s *ledger.Status) string {
	if s.Planned.OldestAt == nil {
		return "nothing on the way"
	}
	batches := "1 batch"
	if s.Planned.Batches > 1 {
		batches = humanize.Comma(s.Planned.Batches) + " batches"
	}
	return batches + " of " + cli.Rows(s.Planned.Rows) + " on the way, the oldest planned " + cli.Span(s.ReadAt.Sub(*s.Planned.OldestAt)) + " ago"
}
