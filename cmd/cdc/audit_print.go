package main

import (
	"fmt"
	"io"
	"strconv"
	"strings"
	"sync"
	"text/tabwriter"
	"time"

	"github.com/dustin/go-humanize"
	"github.com/rs/zerolog"

	"github.com/sluicebox/sluicebox/internal/audit"
)

// printReport writes a report for people: a table of the days that differ, the events that do, and a summary.
func printReport(w io.Writer, report *audit.Report) error {
	out := &strings.Builder{}
	if !report.Same() {
		printDays(out, report)
		for _, kind := range audit.Kinds() {
			printFinding(out, kind, report.Differences[kind])
		}
		out.WriteString("\n")
	}
	for _, column := range report.NotCompared {
		fmt.Fprintf(out, "not compared: %s\n", column)
	}
	if r := report.Repair; r != nil && r.Requested > 0 {
		fmt.Fprintf(out, "repair: asked for %s, %s are in ClickHouse now", number(r.Requested), number(r.Restored))
		if r.Stopped != "" {
			fmt.Fprintf(out, "; not waited for: %s", r.Stopped)
		}
		out.WriteString("\n")
	}
	verdict := paint(w, green, "same")
	if !report.Same() {
		verdict = paint(w, red, "differs")
	}
	fmt.Fprintf(out, "%s: %s events in Postgres, %s in ClickHouse", verdict, number(report.Postgres), number(report.ClickHouse))
	if days := len(report.Days); days > 0 {
		fmt.Fprintf(out, ", over %s days from %s to %s", number(uint64(days)), report.Days[0].Date, report.Days[days-1].Date)
	}
	fmt.Fprintf(out, "; took %.1f s\n", report.Seconds)
	for _, apart := range []struct {
		n    uint64
		what string
	}{
		{report.Waiting, "wait to be delivered or marked"},
		{report.Quarantined, "are in quarantine"},
		{report.Expired, "are in ClickHouse alone, since the retention removed them from Postgres"},
	} {
		if apart.n > 0 {
			fmt.Fprintf(out, "  apart from that, %s %s\n", number(apart.n), apart.what)
		}
	}
	_, err := io.WriteString(w, out.String())
	return err
}

func printDays(out io.Writer, report *audit.Report) {
	table := tabwriter.NewWriter(out, 0, 0, 2, ' ', tabwriter.AlignRight)
	_, _ = fmt.Fprint(table, "day\tPostgres\tClickHouse\t") // a strings.Builder takes everything
	for _, kind := range audit.Kinds() {
		_, _ = fmt.Fprintf(table, "%s\t", kind)
	}
	_, _ = fmt.Fprintln(table)
	for _, day := range report.Days {
		if !day.Differs() {
			continue
		}
		_, _ = fmt.Fprintf(table, "%s\t%s\t%s\t", day.Date, number(day.Postgres), number(day.ClickHouse))
		for _, kind := range audit.Kinds() {
			cell := "."
			if n := day.Differences[kind]; n > 0 {
				cell = number(n)
			}
			_, _ = fmt.Fprintf(table, "%s\t", cell)
		}
		_, _ = fmt.Fprintln(table)
	}
	_ = table.Flush()
}

// meaning is what each kind is, in the words of the help.
func meaning(kind audit.Kind) string {
	switch kind {
	case audit.Missing:
		return "processed in Postgres, not in ClickHouse"
	case audit.Duplicated:
		return "more than once in ClickHouse"
	case audit.Unmarked:
		return "in ClickHouse, not processed in Postgres"
	case audit.Unknown:
		return "in ClickHouse, not in Postgres"
	case audit.Different:
		return "in both, with other content"
	default:
		return string(kind)
	}
}

func printFinding(out io.Writer, kind audit.Kind, finding *audit.Finding) {
	if finding.Count == 0 {
		return
	}
	_, _ = fmt.Fprintf(out, "\n%s (%s): %s\n  ids %s", kind, meaning(kind), number(finding.Count), idRanges(finding.Events))
	if more := finding.Count - uint64(len(finding.Events)); more > 0 {
		_, _ = fmt.Fprintf(out, " and %s more", number(more))
	}
	_, _ = fmt.Fprintln(out)
}

// idRanges writes ids, which are in order, as the ranges of neighbours that they are, with how often a duplicated one is there.
func idRanges(events []audit.Event) string {
	var parts []string
	for len(events) > 0 {
		first, n := events[0], 1
		for n < len(events) && events[n].ID == first.ID+int64(n) && events[n].Rows == first.Rows {
			n++
		}
		part := strconv.FormatInt(first.ID, 10)
		if n > 1 {
			part += "-" + strconv.FormatInt(events[n-1].ID, 10)
		}
		if first.Rows > 0 {
			part += fmt.Sprintf(" (%d times)", first.Rows)
		}
		parts, events = append(parts, part), events[n:]
	}
	return strings.Join(parts, ", ")
}

func counts(report *audit.Report) string {
	var parts []string
	for _, kind := range audit.Kinds() {
		if n := report.Differences[kind].Count; n > 0 {
			parts = append(parts, number(n)+" "+string(kind))
		}
	}
	return strings.Join(parts, ", ")
}

func number(n uint64) string { return humanize.Comma(int64(n)) }

// shownProgress shows how far something is: a bar on a terminal, a line of the log every two seconds elsewhere.
type shownProgress struct {
	out      io.Writer
	log      zerolog.Logger
	terminal bool
	began    time.Time

	mu   sync.Mutex
	name string
	done float64

	stop  chan struct{}
	ended chan struct{}
}

// progressInterval is how often the log tells of progress; what takes less does not need any.
const progressInterval = 2 * time.Second

func showProgress(out io.Writer, log zerolog.Logger) *shownProgress {
	p := &shownProgress{
		out: out, log: log, terminal: isTerminal(out), began: time.Now(), stop: make(chan struct{}), ended: make(chan struct{}),
	}
	go p.show()
	return p
}

// step is told which step is how far, from 0 to 1.
func (p *shownProgress) step(name string, done float64) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.name, p.done = name, done
}

// end takes the bar away.
func (p *shownProgress) end() {
	close(p.stop)
	<-p.ended
}

func (p *shownProgress) show() {
	defer close(p.ended)
	interval := progressInterval
	if p.terminal {
		interval /= 10
	}
	tick := time.NewTicker(interval)
	defer tick.Stop()
	for {
		select {
		case <-tick.C:
			p.tell()
		case <-p.stop:
			if p.terminal {
				_, _ = io.WriteString(p.out, "\r\x1b[K") // nobody is left to tell that standard error is closed
			}
			return
		}
	}
}

func (p *shownProgress) tell() {
	p.mu.Lock()
	name, done := p.name, p.done
	p.mu.Unlock()
	took := time.Since(p.began)
	if name == "" || took < progressInterval {
		return
	}
	if !p.terminal {
		p.log.Info().Str("step", name).Int("percent", int(done*100)).Float64("seconds", took.Seconds()).Msg("auditing")
		return
	}
	const width = 30
	full := int(done * width)
	_, _ = fmt.Fprintf(p.out, "\r\x1b[K%s [%s%s] %d %% %s", name, strings.Repeat("#", full), strings.Repeat(".", width-full), int(done*100),
		took.Round(time.Second))
}
