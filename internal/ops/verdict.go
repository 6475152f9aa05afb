package ops

import (
	"time"

	"github.com/sluicebox/sluicebox/internal/cli"
	"github.com/sluicebox/sluicebox/internal/ledger"
	"github.com/sluicebox/sluicebox/internal/pipeline"
)

const (
	// brief is how long a pause may last before it is trouble: a database that is started again takes some seconds.
	brief = 10 * time.Second
	// late and tooLate are lags that want a look, and an alarm; docs/metrics.md alerts on the latter.
	late, tooLate = 15 * time.Second, time.Minute
	// stale is the age from which what Postgres told is said to be old.
	stale = 15 * time.Second
)

// observed is all that the daemon knows at one moment.
type observed struct {
	now      time.Time
	state    pipeline.State
	reason   string
	held     held
	began    bool
	reading  reading
	recently recently
	survey   survey
	examined examination
	known    known
}

// heldBy is whom delivery waits for; empty: neither, or nothing holds it up.
func (o *observed) heldBy() pipeline.Peer {
	if o.held.by == "" && !o.held.since.IsZero() && !o.began { // at a start, Postgres is looked at first
		return pipeline.Postgres
	}
	return o.held.by
}

// verdict says in one sentence whether it is fine. What the daemon itself knows comes first: it is newer than what Postgres told, and is
// there when Postgres is not.
func (o *observed) verdict() (level Level, sentence string) {
	status := o.known.status
	if level, sentence := o.atWork(); sentence != "" {
		return level, sentence
	}
	if status == nil {
		return Notice, "the ledger in Postgres was not read yet"
	}
	level, summary := Summarize(status)
	if o.state == pipeline.Standby {
		summary = "standing by; " + o.leader() + ": " + summary
	}
	old := o.known.err != nil && o.now.Sub(o.known.at) > stale
	switch {
	case level == Trouble:
	case old && o.state != pipeline.Standby && o.reading.lag > late: // as far as this daemon knows by itself
		if o.reading.lag > tooLate {
			level = Trouble
		} else {
			level = Notice
		}
		return level, "delivery is " + cli.Span(o.reading.lag) + " late, and Postgres does not let this page read the ledger; it was last read " +
			cli.Span(o.now.Sub(o.known.at)) + " ago"
	case old:
		return Notice, "delivery goes on, but Postgres does not let this page read the ledger; it was last read " + cli.Span(o.now.Sub(o.known.at)) + " ago"
	case o.state == pipeline.Standby || status.Phase != ledger.PhaseStream:
	case o.reading.lag > tooLate:
		return Trouble, "delivery is " + cli.Span(o.reading.lag) + " late" + Behind(status)
	case o.reading.lag > late:
		return Notice, "delivery is " + cli.Span(o.reading.lag) + " late" + Behind(status)
	case o.survey.asked && !o.survey.up:
		return Notice, "ClickHouse does not answer; no event waits for it yet"
	}
	if n := o.examined.failed(); n > 0 && level != Trouble {
		return Notice, summary + "; " + cli.Count(int64(n), "check") + " failed, see below"
	}
	return level, summary
}

// atWork is the verdict of a daemon that does not deliver; empty: it does, or stands by.
func (o *observed) atWork() (level Level, sentence string) {
	switch {
	case o.state == pipeline.Stopped:
		return Notice, "this daemon is stopping; the next one goes on where delivery stopped"
	case !o.held.since.IsZero():
		span := o.now.Sub(o.held.since)
		level = Trouble
		if span < brief {
			level = Notice
		}
		who := map[pipeline.Peer]string{pipeline.Postgres: "Postgres holds delivery up", pipeline.ClickHouse: "ClickHouse holds delivery up"}[o.heldBy()]
		if who == "" {
			who = "delivery waits"
		}
		return level, who + " for " + cli.Span(span) + o.waiting()
	case o.state == pipeline.Starting || o.state == "":
		return Notice, "starting: connecting to Postgres"
	}
	return Fine, ""
}

// waiting says what waits while delivery is held up.
func (o *observed) waiting() string {
	hand := o.recently.hand
	if rows := hand.gathered + hand.writing + hand.settling; rows > 0 {
		return "; " + cli.Rows(int64(rows)) + " in hand, the rest in Postgres"
	}
	return "; events wait in Postgres, none is lost"
}

func (o *observed) leader() string {
	if s := o.known.status; s != nil && s.Leader.Leads && s.Leader.Holder != "" {
		return cli.OneLine(s.Leader.Holder, 80) + " leads"
	}
	return "who leads is not known"
}

// lateness says how late delivery is, as exactly as is known.
func (o *observed) lateness() string {
	switch {
	case o.state == pipeline.Standby:
		return "This daemon takes over when that one ends or is silent."
	case o.reading.standby || o.state == pipeline.Starting || o.state == "" || o.state == pipeline.Stopped:
		return ""
	case !o.reading.proved:
		return "How late delivery is will be known once the stream was read up to the present."
	case o.reading.lag == 0:
		return "Everything that was committed is in ClickHouse" + o.aside()
	default:
		return "Everything that was committed until " + cli.Span(o.reading.lag) + " ago is in ClickHouse" + o.aside()
	}
}

func (o *observed) aside() string {
	if s := o.known.status; s != nil && s.Held+s.Dropped > 0 {
		return ", but for what is in quarantine."
	}
	return "."
}
