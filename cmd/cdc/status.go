package main

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/dustin/go-humanize"

	"github.com/sluicebox/sluicebox/internal/ledger"
)

type statusCommand struct {
	postgres

	JSON bool `help:"Print JSON." name:"json"`
}

// Help is shown by cdc status --help.
func (*statusCommand) Help() string {
	return `One look at Postgres: who leads, how far delivery is, what the slot keeps, what is in quarantine, what went wrong lately.
It needs neither ClickHouse nor a daemon. The first line says how things are. Exit code 0 means that it could be read, whatever it says.

    cdc status
    watch -n 2 cdc status
    cdc status --json | jq -r .summary`
}

// Run prints the status.
func (c *statusCommand) Run(ctx context.Context) error {
	return c.operate(ctx, func(l *ledger.Ledger) error {
		s, err := l.Status(ctx)
		if err != nil {
			return err
		}
		colour, summary := summarize(s)
		if c.JSON {
			return printJSON(os.Stdout, struct {
				Summary string `json:"summary"`
				*ledger.Status
			}{summary, s})
		}
		text, err := statusTable(s)
		if err != nil {
			return err
		}
		if _, err := fmt.Printf("%s\n\n%s", paint(os.Stdout, colour, summary), text); err != nil {
			return fmt.Errorf("print the status: %w", err)
		}
		return nil
	})
}

const (
	// silentAfter is the age of a lease from which on its holder is said to be silent. It is renewed at least once a second.
	silentAfter = 10 * time.Second
	// stuckAfter is the age of a planned batch from which on something is in its way. Writing and settling one takes seconds.
	stuckAfter = 30 * time.Second
)

// summarize says in one sentence how things are, and gives it the colour of how bad that is.
func summarize(s *ledger.Status) (colour int, summary string) {
	since := func(t time.Time) string { return span(s.ReadAt.Sub(t)) }
	slot, planned := s.ReplicationSlot, s.Planned.OldestAt
	switch {
	case s.InRecovery:
		return red, "this server is a standby; who leads and what the slot keeps is known to the primary only"
	case !s.Known && len(s.Others) > 0:
		return red, "no daemon has ever led " + s.Slot + "; the ledger knows " + strings.Join(s.Others, ", ") + " (CDC_SLOT)"
	case s.Leader.HeartbeatAt == nil:
		return yellow, "no daemon has ever led " + s.Slot + "; cdc run starts one"
	case !s.Leader.Leads:
		return red, "no daemon leads since " + since(*s.Leader.HeartbeatAt) + behind(s)
	case s.ReadAt.Sub(*s.Leader.HeartbeatAt) > silentAfter:
		return red, "the daemon that leads is silent since " + since(*s.Leader.HeartbeatAt) + behind(s)
	case planned != nil && s.ReadAt.Sub(*planned) > stuckAfter:
		return red, "stuck: a batch that was planned " + since(*planned) + " ago is not delivered; is ClickHouse up? the daemon's log says why" +
			behind(s)
	case s.Phase != ledger.PhaseStream:
		return yellow, backfilling(s)
	case slot == nil:
		return red, "the slot is missing; the daemon creates it anew and reads the rows from the table"
	case slot.WALStatus == "lost" || slot.InvalidationReason != "":
		return red, "the slot is lost (" + lostBecause(slot) + "); the daemon creates it anew and reads the rows from the table"
	case s.LagBytes != nil && *s.LagBytes < 0:
		return red, "the WAL of the server ends " + size(-*s.LagBytes) +
			" before the settled position; was Postgres restored from a backup?"
	case !slot.Active:
		return yellow, "a daemon leads, but does not read the slot; its log says why" + behind(s)
	case s.Held > 0:
		return yellow, "streaming" + behind(s) + lastBatch(s) + "; " + rowCount(s.Held) + " in quarantine"
	default:
		return green, "streaming" + behind(s) + lastBatch(s)
	}
}

func backfilling(s *ledger.Status) string {
	text := "backfill"
	if len(s.Incidents) > 0 && s.Incidents[0].EndedAt == nil {
		text += " (" + oneLine(s.Incidents[0].Kind, 0) + ") for " + span(s.ReadAt.Sub(s.Incidents[0].BeganAt))
	}
	if s.Unprocessed.Problem == "" {
		text += ": " + unprocessed(s) + " to deliver"
	}
	return text + lastBatch(s)
}

func behind(s *ledger.Status) string {
	if s.LagBytes == nil {
		return ""
	}
	return "; " + size(*s.LagBytes) + " behind"
}

func lastBatch(s *ledger.Status) string {
	if s.LastBatch == nil {
		return "; no batch yet"
	}
	return "; last batch " + span(s.ReadAt.Sub(s.LastBatch.SettledAt)) + " ago"
}

func lostBecause(slot *ledger.ReplicationSlot) string {
	if slot.InvalidationReason != "" {
		return slot.InvalidationReason
	}
	return "wal_status lost"
}

// statusTable is all that the first line leaves out.
func statusTable(s *ledger.Status) (string, error) {
	var text bytes.Buffer
	table := tabwriter.NewWriter(&text, 0, 0, 2, ' ', 0)
	line := func(name, format string, args ...any) {
		_, _ = fmt.Fprintf(table, name+"\t"+format+"\n", args...) // to memory
	}
	line("stream", "%s, read at %s UTC", s.Slot, stamp(s.ReadAt))
	line("daemon", "%s", leaderText(s))
	line("phase", "%s", s.Phase)
	line("settled", "%s, row %d of its transaction", s.SettledLSN, s.SettledOrdinal)
	line("acknowledged", "%s", s.AckedLSN)
	line("server", "%s%s", s.ServerLSN, strings.Replace(behind(s), "; ", ", delivery is ", 1))
	line("slot", "%s", slotText(s.ReplicationSlot))
	line("planned", "%s", plannedText(s))
	if b := s.LastBatch; b != nil {
		line("last batch", "number %d, %s, %s ago", b.Seq, rowCount(b.Rows), span(s.ReadAt.Sub(b.SettledAt)))
	} else {
		line("last batch", "none yet")
	}
	line("unprocessed", "%s", unprocessed(s))
	line("quarantine", "%s held, %s dropped", rowCount(s.Held), humanize.Comma(s.Dropped))
	redelivery := "no requests"
	if s.OldestRequest != nil {
		redelivery = fmt.Sprintf("%s requested, the oldest %s ago", rowCount(s.Redeliveries), span(s.ReadAt.Sub(*s.OldestRequest)))
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
		took, found, gap := "open for "+span(s.ReadAt.Sub(n.BeganAt)), "-", "from "+n.FromLSN
		if n.EndedAt != nil {
			took = span(n.EndedAt.Sub(n.BeganAt))
		}
		if n.Rows != nil {
			found = humanize.Comma(*n.Rows)
		}
		if n.ToLSN != nil && n.GapBytes != nil {
			gap = fmt.Sprintf("%s (%s to %s)", size(*n.GapBytes), n.FromLSN, *n.ToLSN)
		}
		_, _ = fmt.Fprintf(table, "%s\t%s\t%s\t%s\t%s\t%s\n",
			oneLine(n.Kind, 0), stamp(n.BeganAt), took, found, gap, oneLine(n.Reason, 0))
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
	holder, heard := oneLine(s.Leader.Holder, 0), ", heard "+span(s.ReadAt.Sub(*s.Leader.HeartbeatAt))+" ago"
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
	text += ", confirmed " + slot.ConfirmedFlushLSN + ", keeps " + size(slot.RetainedBytes) + " of WAL, wal_status " + slot.WALStatus
	if slot.InvalidationReason != "" {
		text += ", invalidated by " + slot.InvalidationReason
	}
	if slot.SafeWALBytes != nil {
		text += ", may be lost after " + size(*slot.SafeWALBytes) + " more"
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
	return batches + " of " + rowCount(s.Planned.Rows) + " on the way, the oldest planned " + span(s.ReadAt.Sub(*s.Planned.OldestAt)) + " ago"
}

// unprocessed says how many rows are left, as exactly as is known.
func unprocessed(s *ledger.Status) string {
	u := s.Unprocessed
	switch {
	case u.Problem != "":
		return "not known: " + oneLine(u.Problem, 0)
	case u.Whole:
		return rowCount(u.Rows)
	case u.Rows == u.Newest:
		return "at least " + rowCount(u.Rows)
	default:
		return rowCount(u.Rows) + " of the newest " + humanize.Comma(u.Newest)
	}
}
