package doctor

import (
	"context"
	"time"

	"github.com/dustin/go-humanize"

	"github.com/sluicebox/sluicebox/internal/cli"
)

func outboxRowChecks() []check {
	on := []string{postgresReachable, outboxExists, "outbox.columns", "outbox.grants", LedgerSchema}
	return []check{
		{"outbox.dead_rows", on[:2], deadRows, anytime},
		{"outbox.size", on[:2], outboxSize, anytime},
		{"outbox.oldest_unprocessed", on, oldestUnprocessed, told},
	}
}

func deadRows(_ context.Context, l *look) Finding {
	const few = 200_000 // what autovacuum may leave between two of its runs
	o := l.outbox
	if o.dead > few && o.dead > o.live/2 {
		return warn("fewer than half as many as live ones", "VACUUM (ANALYZE) "+l.outboxName(),
			"%s dead rows beside %s live ones: vacuum does not keep up, or an old transaction hinders it", humanize.Comma(o.dead), humanize.Comma(o.live))
	}
	return ok("%s", humanize.Comma(o.dead))
}

func outboxSize(_ context.Context, l *look) Finding {
	const large = 20 << 30
	if l.config.Retention == 0 && l.outbox.bytes > large {
		return warn("a retention", "set CDC_RETENTION=720h (or partition the outbox: docs/partitions.md), and GRANT DELETE ON "+l.outboxName()+" TO "+l.role(),
			"the outbox has %s, and nothing is ever removed from it", cli.Size(l.outbox.bytes))
	}
	return ok("%s", cli.Size(l.outbox.bytes))
}

// oldestUnprocessed looks at the newest rows only, since no index tells which are processed. The time is the writer's.
func oldestUnprocessed(ctx context.Context, l *look) Finding {
	const newest, old = 10_000, 5 * time.Minute
	var n int64
	var seconds *float64
	err := l.pg.QueryRow(ctx, `
SELECT count(*), extract(epoch FROM clock_timestamp() - min(o.event_date_time))::float8
FROM (SELECT id, processed, event_date_time FROM `+l.outboxName()+` WHERE `+l.config.Replication.Share.Where(`id`)+` ORDER BY id DESC LIMIT $2) o
WHERE NOT o.processed AND isfinite(o.event_date_time) AND NOT EXISTS (SELECT FROM sluicebox.quarantine q WHERE q.slot = $1 AND q.id = o.id)`,
		l.config.Replication.Slot, newest).Scan(&n, &seconds)
	if err != nil {
		return unknown(err)
	}
	if n == 0 || seconds == nil {
		return ok("the newest %s rows are processed", humanize.Comma(newest))
	}
	age := time.Duration(*seconds * float64(time.Second))
	if age > old {
		return warn("seconds", "cdc status: it says what holds delivery up", "%s of the newest %s rows are not delivered, the oldest since %s",
			humanize.Comma(n), humanize.Comma(newest), cli.Span(age))
	}
	return ok("%s rows wait, the oldest since %s", humanize.Comma(n), cli.Span(age))
}
