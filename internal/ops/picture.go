package ops

import (
	"math"

	"github.com/dustin/go-humanize"

	"github.com/sluicebox/sluicebox/internal/cli"
	"github.com/sluicebox/sluicebox/internal/pipeline"
)

// picture is the line from Postgres to ClickHouse, drawn. There are two, of the same parts: a wide one, and one for a phone.
type picture struct {
	Class, Label  string
	Width, Height int
	Boxes         []box
	Links         []link
}

type box struct {
	Class         string
	X, Y          int
	Width, Height int
	Texts         []label
}

type link struct {
	Class          string
	X1, Y1, X2, Y2 int
	Texts          []label
}

type label struct {
	Class string
	X, Y  int
	Text  string
}

// part is a box before it has a place.
type part struct {
	class, title string
	lines        [3]string
}

const (
	boxWidth, boxHeight = 236, 104
	linkWide, linkTall  = 126, 58 // room between two boxes
)

// pictures draws the line.
func (o *observed) pictures() []picture {
	parts := []part{o.postgres(), o.daemon(), o.clickhouse()}
	rates := []string{perSecond(o.recently.in), perSecond(o.recently.out)}
	links := []string{o.linkClass(pipeline.Postgres, o.recently.in), o.linkClass(pipeline.ClickHouse, o.recently.out)}
	titles := []string{"received", "delivered"}
	said := "Postgres: " + parts[0].lines[0] + ". Daemon: " + parts[1].lines[0] + ", " + parts[1].lines[1] + ". ClickHouse: " + parts[2].lines[0] + "."

	wide := picture{Class: "wide", Label: said, Width: 3*boxWidth + 2*linkWide + 4, Height: boxHeight + 4}
	tall := picture{Class: "tall", Label: said, Width: boxWidth + 64, Height: 3*boxHeight + 2*linkTall + 4}
	for i, p := range parts {
		x, y := 2+i*(boxWidth+linkWide), 2+i*(boxHeight+linkTall)
		wide.Boxes = append(wide.Boxes, p.at(x, 2))
		tall.Boxes = append(tall.Boxes, p.at(32, y))
		if i == len(parts)-1 {
			break
		}
		from, middle := x+boxWidth, 2+boxHeight/2
		wide.Links = append(wide.Links, link{
			Class: links[i], X1: from + 7, Y1: middle, X2: from + linkWide - 9, Y2: middle,
			Texts: []label{{"rate", from + linkWide/2, middle - 10, rates[i]}, {"what", from + linkWide/2, middle + 20, titles[i]}},
		})
		top, centre := y+boxHeight, 32+boxWidth/2
		tall.Links = append(tall.Links, link{
			Class: links[i], X1: centre, Y1: top + 6, X2: centre, Y2: top + linkTall - 8,
			Texts: []label{{"rate after", centre + 14, top + linkTall/2 - 2, rates[i]}, {"what after", centre + 14, top + linkTall/2 + 14, titles[i]}},
		})
	}
	return []picture{wide, tall}
}

func (p part) at(x, y int) box {
	b := box{Class: p.class, X: x, Y: y, Width: boxWidth, Height: boxHeight, Texts: []label{{"title", x + 16, y + 27, p.title}}}
	for _, line := range p.lines {
		if line != "" {
			b.Texts = append(b.Texts, label{"line", x + 16, y + 32 + len(b.Texts)*19, line})
		}
	}
	return b
}

// linkClass says whether events go along a link, or are held up there.
func (o *observed) linkClass(by pipeline.Peer, rate float64) string {
	switch {
	case !o.held.since.IsZero() && o.heldBy() == by:
		return "held"
	case rate > 0 && !math.IsNaN(rate):
		return "moving"
	default:
		return "idle"
	}
}

func (o *observed) postgres() part {
	p := part{class: "ok", title: "Postgres"}
	slot := o.reading.slot
	switch {
	case !o.held.since.IsZero() && o.heldBy() == pipeline.Postgres:
		p.class, p.lines[0] = "bad", "holds delivery up"
	case o.known.err != nil:
		p.class, p.lines[0] = "unknown", "does not answer this page"
	case o.state == pipeline.Standby:
		p.lines[0] = "another daemon reads the slot"
	case slot == nil:
		p.class, p.lines[0] = "unknown", "no slot was looked at yet"
	default:
		p.lines[0] = cli.Size(o.reading.bytes) + " of WAL waiting"
	}
	if slot != nil {
		p.lines[1] = "slot keeps " + cli.Size(slot.RetainedWAL)
		p.lines[2] = "wal_status " + slot.WALStatus
		if slot.WALStatus == "lost" || slot.WALStatus == "unreserved" {
			p.class = "bad"
		}
	}
	return p
}

func (o *observed) daemon() part {
	p := part{class: "ok", title: "Sluicebox"}
	hand := o.recently.hand
	switch o.state {
	case pipeline.Streaming, pipeline.Paused:
		if !o.held.since.IsZero() && o.heldBy() == "" {
			p.class = "bad"
		}
		p.lines[0] = "filling a batch: " + cli.Rows(int64(hand.gathered))
		p.lines[1] = "in flight: " + cli.Rows(int64(hand.writing))
		p.lines[2] = "being marked: " + cli.Rows(int64(hand.settling))
		return p
	case pipeline.Standby, pipeline.Starting, pipeline.Recovering, pipeline.Backfill, pipeline.Stopped:
	default:
	}
	p.lines[0] = map[pipeline.State]string{
		pipeline.Standby: "stands by", pipeline.Recovering: "finishes planned batches", pipeline.Backfill: "reads the table",
		pipeline.Stopped: "is stopping",
	}[o.state]
	if p.lines[0] == "" {
		p.class, p.lines[0] = "unknown", "is starting"
	}
	if s := o.known.status; s != nil && o.known.err == nil {
		p.lines[1] = "in flight: " + cli.Rows(s.Planned.Rows)
	}
	return p
}

func (o *observed) clickhouse() part {
	p := part{class: "ok", title: "ClickHouse"}
	switch {
	case !o.held.since.IsZero() && o.heldBy() == pipeline.ClickHouse:
		p.class, p.lines[0] = "bad", "holds delivery up"
	case !o.survey.asked:
		p.class, p.lines[0] = "unknown", "was not asked yet"
	case !o.survey.up:
		p.class, p.lines[0] = "bad", "does not answer"
	default:
		p.lines[0] = "answers, " + humanize.Comma(o.survey.parts) + " parts"
	}
	if o.recently.delivered > 0 || o.recently.epoch != 0 {
		p.lines[1] = "delivered " + humanize.Comma(int64(o.recently.delivered)) // by this process
	}
	if s := o.known.status; s != nil && s.LastBatch != nil {
		p.lines[2] = "last batch " + cli.Span(o.age(s.LastBatch.SettledAt)) + " ago"
	}
	return p
}
