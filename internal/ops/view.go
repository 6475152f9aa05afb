package ops

import (
	"fmt"
	"net/http"
	"regexp"
	"strings"
	"time"
	"unicode"
	"unicode/utf8"

	"github.com/dustin/go-humanize"

	"github.com/sluicebox/sluicebox/internal/cli"
	"github.com/sluicebox/sluicebox/internal/doctor"
	"github.com/sluicebox/sluicebox/internal/pipeline"
)

// view is what the template shows, in words.
type view struct {
	Slot, Version, Role string
	At                  string // UTC

	Level                   Level
	Word, Sentence, Meaning string
	Reason                  string // why delivery is held up
	Stale                   string // why what Postgres told is old; empty: it is not

	Pictures   []picture
	Charts     []chart
	Batches    []batchRow
	Facts      []fact
	Incidents  []incidentRow
	Quarantine []quarantineRow
	Held       string // rows in quarantine, and dropped ones
	Findings   []findingRow
	Examined   string // when a doctor looked, and the sum of what it found; empty: it has not
	Hidden     bool   // it found what the verdict tells
	MayRetry   bool
	Read       bool // the ledger was read at least once

	Notice string // what became of a request to retry
}

type fact struct{ Name, Value, Class string }

type batchRow struct {
	Class                      string
	Seq, Age, At, Rows, Bytes  string
	SealedBy, Write, Mark, All string
}

type incidentRow struct{ Class, Kind, Began, Took, Rows, Gap, Reason string }

type findingRow struct{ Result, Check, Seen, Wanted, Mend string }

type quarantineRow struct {
	ID        int64
	Type      string
	Since     string
	Reason    string
	State     string
	Requested bool
}

// observe gathers what is known.
func (p *Page) observe(r *http.Request) *observed {
	k := p.reader.read(r.Context())
	o := &observed{
		now: time.Now(), reading: p.metrics.standing.read(), survey: p.metrics.surveyed.read(), examined: p.metrics.examined.read(), known: k,
	}
	o.recently = p.metrics.recent.read(o.now)
	p.metrics.mu.Lock()
	defer p.metrics.mu.Unlock()
	o.state, o.reason, o.held, o.began = p.metrics.now, p.metrics.reason, p.metrics.held, p.metrics.began
	return o
}

func (p *Page) view(o *observed) *view {
	v := &view{
		Slot: p.config.Slot, Version: p.config.Build.Version, Role: o.role(), At: cli.Stamp(o.now),
		Meaning: o.lateness(), Pictures: o.pictures(), Charts: o.charts(), MayRetry: p.config.Loopback,
	}
	level, sentence := o.verdict()
	v.Level, v.Sentence = level, capital(sentence)
	v.Word = map[Level]string{Fine: "Fine", Notice: "Check", Trouble: "Trouble"}[level]
	if !o.held.since.IsZero() {
		v.Reason = cli.OneLine(o.held.reason, 600)
	}
	if err := o.known.err; err != nil {
		v.Stale = "Postgres does not answer this page: " + cli.OneLine(err.Error(), 300)
		if !o.known.at.IsZero() {
			v.Stale = "As of " + cli.Span(o.now.Sub(o.known.at)) + " ago. " + v.Stale
		}
	}
	if e := o.examined; !e.at.IsZero() {
		v.Findings, v.Hidden = o.findings(), e.hidden > 0
		v.Examined = fmt.Sprintf("%d failed, %d warned, %d ok, %s ago", e.counts[doctor.Fail], e.counts[doctor.Warn], e.counts[doctor.OK], cli.Span(o.now.Sub(e.at)))
	}
	if o.known.status == nil {
		return v
	}
	v.Read = true
	v.Batches, v.Facts, v.Incidents, v.Quarantine = o.batches(), o.facts(), o.incidents(), o.quarantine()
	v.Held = cli.Rows(o.known.status.Held) + " held"
	if n := o.known.status.Dropped; n > 0 {
		v.Held += ", " + humanize.Comma(n) + " given up"
	}
	return v
}

func (o *observed) role() string {
	switch {
	case o.recently.epoch != 0:
		return fmt.Sprintf("leads, epoch %d", o.recently.epoch)
	case o.state == pipeline.Standby:
		return "stands by"
	default:
		return "does not lead"
	}
}

// age is how long ago a moment of Postgres's clock was.
func (o *observed) age(t time.Time) time.Duration {
	return o.known.status.ReadAt.Sub(t) + o.now.Sub(o.known.at)
}

func (o *observed) batches() (rows []batchRow) {
	for _, b := range o.known.batches {
		row := batchRow{
			Class: "settled", Seq: humanize.Comma(b.Seq), Rows: humanize.Comma(b.Rows), Bytes: cli.Size(b.Bytes), SealedBy: cli.OneLine(b.SealedBy, 20),
			Age: cli.Span(o.age(b.PlannedAt)) + " ago", At: cli.Stamp(b.PlannedAt), Write: unknown, Mark: unknown, All: "on the way",
		}
		if b.SettledAt == nil {
			row.Class = "planned"
		} else {
			row.All = seconds(b.SettledAt.Sub(b.PlannedAt).Seconds())
		}
		if t, ours := o.recently.timings[b.Seq]; ours { // another daemon's are not known
			row.Write, row.Mark = seconds(t.write.Seconds()), seconds(t.settle.Seconds())
		}
		rows = append(rows, row)
	}
	return rows
}

func (o *observed) facts() []fact {
	s := o.known.status
	facts := []fact{{Name: "Leader", Value: o.leader()}}
	if s.Leader.HeartbeatAt != nil {
		facts = append(facts, fact{Name: "Heard", Value: cli.Span(o.age(*s.Leader.HeartbeatAt)) + " ago"})
	}
	facts = append(facts, fact{Name: "Phase", Value: string(s.Phase)})
	slot := s.ReplicationSlot
	if slot == nil {
		return append(facts, fact{Name: "Slot", Value: "missing", Class: "bad"})
	}
	status := fact{Name: "WAL status", Value: slot.WALStatus}
	if slot.WALStatus != "reserved" {
		status.Class = "warn"
	}
	read, safe := fact{Name: "Read by a daemon", Value: "yes"}, "no limit is set"
	if !slot.Active {
		read.Value, read.Class = "no", "warn"
	}
	if slot.SafeWALBytes != nil {
		safe = cli.Size(*slot.SafeWALBytes)
	}
	facts = append(
		facts, read, status,
		fact{Name: "Keeps", Value: cli.Size(slot.RetainedBytes) + " of WAL"},
		fact{Name: "May grow by", Value: safe},
		fact{Name: "Confirmed", Value: slot.ConfirmedFlushLSN},
		fact{Name: "Settled", Value: s.SettledLSN},
		fact{Name: "WAL ends at", Value: s.ServerLSN},
	)
	if s.Redeliveries > 0 {
		facts = append(facts, fact{Name: "Redelivery", Value: cli.Rows(s.Redeliveries) + " requested"})
	}
	return facts
}

func (o *observed) incidents() (rows []incidentRow) {
	for i := range o.known.status.Incidents {
		n := &o.known.status.Incidents[i]
		row := incidentRow{
			Class: "open", Kind: cli.OneLine(n.Kind, 30), Began: cli.Stamp(n.BeganAt), Took: "open for " + cli.Span(o.age(n.BeganAt)),
			Rows: unknown, Gap: unknown, Reason: cli.OneLine(n.Reason, 300),
		}
		if n.EndedAt != nil {
			row.Class, row.Took = "ended", cli.Span(n.EndedAt.Sub(n.BeganAt))
		}
		if n.Rows != nil {
			row.Rows = humanize.Comma(*n.Rows)
		}
		if n.GapBytes != nil {
			row.Gap = cli.Size(*n.GapBytes)
		}
		rows = append(rows, row)
	}
	return rows
}

func (o *observed) findings() (rows []findingRow) {
	for i := range o.examined.unwell {
		f := &o.examined.unwell[i]
		rows = append(rows, findingRow{
			Result: string(f.Result), Check: f.Check, Seen: cli.OneLine(f.Seen, 300), Wanted: cli.OneLine(f.Wanted, 200), Mend: cli.OneLine(f.Mend, 400),
		})
	}
	return rows
}

func (o *observed) quarantine() (rows []quarantineRow) {
	for i := range o.known.quarantine {
		q := &o.known.quarantine[i]
		row := quarantineRow{
			ID: q.ID, Type: cli.OneLine(q.EventType, 60), Since: cli.Stamp(q.CreatedAt), Reason: reasonClass(q.Reason),
			State: q.State(), Requested: q.RequestedAt != nil,
		}
		if row.Type == "" {
			row.Type = "(outbox row is gone)"
		}
		rows = append(rows, row)
	}
	return rows
}

// reasonClass is a reason without what ClickHouse says about it: that may hold values of the event, and more people see this page than
// may see events. `cdc quarantine show` tells all.
func reasonClass(reason string) string {
	class, answer, answered := strings.Cut(reason, "ClickHouse refuses it: ")
	if !answered || class != "" {
		return cli.OneLine(reason, 160)
	}
	text := "ClickHouse refuses it"
	if code := regexp.MustCompile(`code: (\d{1,5})\b`).FindStringSubmatch(answer); code != nil {
		text += ", code " + code[1]
	}
	if name := regexp.MustCompile("Constraint `([A-Za-z0-9_]{1,64})`").FindStringSubmatch(answer); name != nil {
		text += ", constraint " + name[1]
	}
	return text
}

// capital makes the first letter a capital one.
func capital(text string) string {
	first, size := utf8.DecodeRuneInString(text)
	return string(unicode.ToUpper(first)) + text[size:]
}
