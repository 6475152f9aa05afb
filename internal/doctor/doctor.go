// Package doctor looks whether both databases, the settings and the host are as delivery needs them. It only reads.
//
// A check is data: a name that never changes, the checks it builds on, and a function that judges. The first check of a thing reads
// what there is to know of it, and the others judge that:
//
//	postgres.reachable ─▶ postgres.*, role.*, slot.*, publication.*, outbox.exists ─▶ outbox.*
//	clickhouse.reachable ─▶ clickhouse.*, target.exists ─▶ target.*
//	settings.*, host.*
//
// A database that is down is one finding, and what builds on it is skipped. Before delivery begins, the daemon runs those that must
// hold ([Preflight]); the others it runs beside delivery, and logs.
package doctor

import (
	"cmp"
	"context"
	"fmt"
	"slices"
	"sync"
	"time"

	"github.com/sluicebox/sluicebox/internal/cli"
	"github.com/sluicebox/sluicebox/internal/replication"
)

// Config says what to look at: the settings of the daemon.
type Config struct {
	Postgres    string             // URL
	Replication replication.Config // its URL is the replication credential
	ClickHouse  string             // URL
	TargetTable string

	BatchRows      int
	BatchBytes     int64
	InsertDeadline time.Duration
	MaxSlotWAL     int64         // bytes; 0: no limit
	Retention      time.Duration // 0: never
	AdminAddr      cli.Addr
	SecretFiles    []string // paths of files that settings were read from
	Host           Host

	oldTransaction time.Duration // for tests
}

// patience is the age from which on a transaction is old. Those of a service take seconds; vacuum and a new slot wait for the oldest.
func (c *Config) patience() time.Duration { return cmp.Or(c.oldTransaction, 10*time.Minute) }

// check is one thing that is looked at.
type check struct {
	name  string
	needs []string // checks that must not have failed or been skipped
	run   func(context.Context, *look) Finding
	when  when
}

// when says whether a check tells a daemon that starts something.
type when int

const (
	anytime when = iota
	before       // delivery begins only once it has passed
	told         // the daemon says it by itself, or it is not true yet when a daemon starts
)

// Report is all that was found.
type Report struct {
	Result   Result         `json:"result"` // the worst
	Findings []Finding      `json:"findings"`
	Counts   map[Result]int `json:"counts"`
	Seconds  float64        `json:"seconds"`
}

// checkTimeout bounds one check. Each reads a few rows.
const checkTimeout = 5 * time.Second

// Checks lists the names of all checks, in their order.
func Checks() []string {
	var names []string
	for _, side := range append(sides(), bothSides()) {
		for _, c := range side {
			names = append(names, c.name)
		}
	}
	return names
}

// sides are the checks that need not wait for each other's databases.
func sides() [][]check {
	return [][]check{
		slices.Concat(postgresChecks(), roleChecks(), ledgerChecks(), slotChecks(), publicationChecks(), outboxChecks(), outboxRowChecks()),
		slices.Concat(clickhouseChecks(), targetChecks(), targetDataChecks()),
		slices.Concat(settingsChecks(), hostChecks()),
	}
}

// Run looks at everything. It ends soon after ctx does; what was not looked at until then is skipped.
func Run(ctx context.Context, config Config) *Report {
	began := time.Now()
	l := &look{config: config}
	defer l.close()
	all := sides()
	found := make([]findings, len(all))
	var group sync.WaitGroup
	for i, side := range all {
		found[i] = findings{}
		group.Go(func() { found[i].run(ctx, l, side) })
	}
	group.Wait()
	known := slices.Concat(found...)
	known.run(ctx, l, bothSides())
	report := &Report{Result: OK, Findings: known, Counts: map[Result]int{}}
	for _, f := range known {
		report.Counts[f.Result]++
		report.Result = worse(report.Result, f.Result)
	}
	report.Seconds = time.Since(began).Seconds()
	return report
}

// findings are those of the checks that have run.
type findings []Finding

// run runs checks one after the other and adds what they find.
func (f *findings) run(ctx context.Context, l *look, checks []check) {
	for _, c := range checks {
		found := f.missing(c)
		if found == nil {
			found = new(c.judge(ctx, l))
		}
		found.Check, found.when = c.name, c.when
		*f = append(*f, *found)
	}
}

// missing is the finding of a check whose ground is not there, or could not be looked at; nil: it is.
func (f *findings) missing(c check) *Finding {
	for _, need := range c.needs {
		for _, earlier := range *f {
			if earlier.Check == need && (earlier.Result == Fail || earlier.Result == Skip || earlier.Err != nil) {
				return new(skip("needs %s", need))
			}
		}
	}
	return nil
}

// judge runs a check. A mistake in one must not end a daemon that delivers.
func (c check) judge(ctx context.Context, l *look) (found Finding) {
	defer func() {
		if problem := recover(); problem != nil {
			found = unknown(fmt.Errorf("a mistake of this program: %v", problem))
		}
	}()
	ctx, cancel := context.WithTimeout(ctx, checkTimeout)
	defer cancel()
	if ctx.Err() != nil {
		return skip("there was no time left")
	}
	return c.run(ctx, l)
}

// Unwell is what is not as it should be, failures first.
func (r *Report) Unwell() []Finding {
	var unwell []Finding
	for _, result := range []Result{Fail, Warn} {
		for _, f := range r.Findings {
			if f.Result == result {
				unwell = append(unwell, f)
			}
		}
	}
	return unwell
}

// Told says whether a daemon tells of this by itself, or it is not true yet when a daemon starts.
func (f Finding) Told() bool { return f.when != anytime }

// Reached says whether both databases answered.
func (r *Report) Reached() bool {
	return !slices.ContainsFunc(r.Findings, func(f Finding) bool {
		return f.Result == Fail && (f.Check == postgresReachable || f.Check == clickhouseReachable)
	})
}

// Preflight runs the checks without which delivery must not begin, on sessions of q, and returns the first that has failed; nil: none has.
// The time that it may take is ctx's.
func Preflight(ctx context.Context, q Querier, stream replication.Config) *Finding {
	l := &look{config: Config{Replication: stream}, pg: q}
	for _, c := range sides()[0] {
		if c.when != before {
			continue
		}
		if found := c.run(ctx, l); found.Result == Fail {
			found.Check = c.name
			return &found
		}
	}
	return nil
}
