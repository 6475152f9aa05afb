package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"os"
	"time"

	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/sluicebox/sluicebox/internal/audit"
	"github.com/sluicebox/sluicebox/internal/cli"
	"github.com/sluicebox/sluicebox/internal/ledger"
	"github.com/sluicebox/sluicebox/internal/pipeline"
	"github.com/sluicebox/sluicebox/internal/sink"
)

type auditCommand struct {
	databases

	Since   moment        `placeholder:"TIME" help:"Only events from this time on: 2026-11-24 (UTC), 2026-11-24T10:00:00Z, or 24h for that long ago."`
	Until   moment        `placeholder:"TIME" help:"Only events before this time."`
	JSON    bool          `name:"json" help:"Print the report as JSON, with every day."`
	Repair  bool          `help:"Have the daemon deliver what is missing in ClickHouse and still in Postgres."`
	Wait    time.Duration `default:"5m" min:"1s" max:"24h" help:"How long a repair waits for the daemon."`
	Timeout time.Duration `default:"1h" min:"1s" max:"24h" help:"How long the comparison may take."`
}

// Help is shown by cdc audit --help.
func (*auditCommand) Help() string {
	return `Compares count and content of the events of each day, by checksums that the databases compute, and then names each event that
differs: missing (processed in Postgres, not in ClickHouse), duplicated (more than once in ClickHouse), unmarked (in ClickHouse, not
processed in Postgres), unknown (in ClickHouse only), different (in both, with other content). The daemon may run meanwhile: events
that are on their way are no difference. It only reads, and keeps its result in sluicebox.audit for the daemon's metrics.

With --repair it stores a request for each missing event, and no other; the leading daemon delivers these through planned batches,
as all others. Then it looks at them again. Without a daemon the requests wait for its next start.

It exits with 0 when both hold the same, 6 when events differ, 3 when something must be changed before they can be compared, 1 for
any other error: then nothing is known.`
}

// moment is a time that is given as one, or as how long ago it was.
type moment struct{ time.Time }

// UnmarshalText reads a date (its start in UTC), a time with its zone, or a duration.
func (m *moment) UnmarshalText(text []byte) error {
	if ago, err := time.ParseDuration(string(text)); err == nil && ago > 0 {
		m.Time = time.Now().Add(-ago)
		return nil
	}
	for _, layout := range []string{time.DateOnly, time.RFC3339} {
		if at, err := time.Parse(layout, string(text)); err == nil && at.UTC().Year() > 1 { // the first instant of year 1 would mean none
			m.Time = at.UTC()
			return nil
		}
	}
	return fmt.Errorf("%q is not a date such as 2026-11-24, a time such as 2026-11-24T10:00:00Z, or a duration such as 24h", text)
}

// Validate checks what the types of the settings can't.
func (c *auditCommand) Validate() error {
	problems := []error{c.databases.Validate()}
	if !c.Since.IsZero() && !c.Until.IsZero() && !c.Since.Before(c.Until.Time) {
		problems = append(problems, errors.New("--since: is not before --until"))
	}
	return errors.Join(problems...)
}

// Run compares, repairs if asked to, and prints what is true then.
func (c *auditCommand) Run(ctx context.Context) error {
	report, err := c.audit(ctx)
	switch {
	case ctx.Err() != nil: // the end that was asked for is none of the ends that a script may take for "same"
		return &cli.Exit{Code: cli.CodeError, Err: errors.New("stopped before the end of the audit: nothing is known")}
	case err != nil:
		return auditExit(err)
	}
	if c.JSON {
		err = printJSON(os.Stdout, report)
	} else {
		err = printReport(os.Stdout, report)
	}
	if err != nil {
		return err
	}
	if report.Same() {
		return nil
	}
	return &cli.Exit{Code: cli.CodeDiffers, Err: errors.New("Postgres and ClickHouse differ: " + counts(report)), Hint: auditHint(report)}
}

func (c *auditCommand) audit(ctx context.Context) (*audit.Report, error) {
	ctx, cancel := context.WithTimeout(ctx, c.Timeout+c.Wait)
	defer cancel()
	const conns = 2
	config, err := c.config(conns)
	if err != nil {
		return nil, err
	}
	config.ConnConfig.RuntimeParams["application_name"] = "sluicebox audit " + c.Slot
	pool, err := pgxpool.NewWithConfig(ctx, config)
	if err != nil {
		return nil, fmt.Errorf("open Postgres: %w", err)
	}
	defer pool.Close()
	if err := checkSchema(ctx, pool); err != nil {
		return nil, err
	}

	shown := showProgress(os.Stderr, c.Logger(os.Stderr))
	defer shown.end()
	schema, table := c.outbox()
	const patience = 8 * time.Second // for a replica of ClickHouse that lags; only when a young event differs
	a, err := audit.Open(ctx, pool, audit.Config{
		ClickHouseURL: c.ClickHouseURL.Now(), Slot: c.Slot, Schema: schema, Table: table, TargetTable: c.TargetTable,
		Since: c.Since.Time, Until: c.Until.Time, Patience: patience, Progress: shown.step,
	})
	if err != nil {
		return nil, err
	}
	defer func() { _ = a.Close() }() // nothing is in flight by then
	comparing, stop := context.WithTimeout(ctx, c.Timeout)
	defer stop()
	report, err := a.Run(comparing)
	if err == nil && c.Repair {
		err = a.Repair(ctx, c.Wait)
	}
	if err != nil {
		return report, err
	}
	books := c.ledger(pool)
	c.keep(ctx, books, report)
	if c.Repair && report.Same() && !c.bounded() {
		// ClickHouse has everything: whatever it had lost, it has lost no more.
		if _, err := books.EndClickHouse(ctx); err != nil {
			log := c.Logger(os.Stderr)
			log.Warn().Err(err).Str("hint", "GRANT UPDATE ON sluicebox.incident to the role of the audit; the daemon's next start ends it otherwise").
				Msg("an incident of kind clickhouse, if there is one, stays open")
		}
	}
	return report, nil
}

// bounded says whether the audit is about a part of the events.
func (c *auditCommand) bounded() bool { return !c.Since.IsZero() || !c.Until.IsZero() }

// keep stores the result for the daemon to show. An audit is worth as much without that.
func (c *auditCommand) keep(ctx context.Context, books *ledger.Ledger, report *audit.Report) {
	scope, differences := ledger.AuditAll, map[string]uint64{}
	if c.bounded() {
		scope = ledger.AuditPart
	}
	for kind, finding := range report.Differences {
		differences[string(kind)] = finding.Count
	}
	if err := books.KeepAudit(ctx, scope, differences); err != nil {
		log := c.Logger(os.Stderr)
		log.Warn().Err(err).Str("hint", "GRANT INSERT, UPDATE ON sluicebox.audit to the role of the audit, and give it a primary, not a standby").
			Msg("the daemon's metrics don't show the result of this audit")
	}
}

// auditExit makes an exit of an error that says what somebody has to change.
func auditExit(err error) error {
	setup, isSetup := errors.AsType[*audit.SetupError](err)
	switch {
	case isSetup:
		return &cli.Exit{Code: cli.CodePreflight, Err: err, Hint: setup.Hint}
	case sink.Denied(err):
		return &cli.Exit{Code: cli.CodePreflight, Err: err, Hint: "check user and password in CLICKHOUSE_URL"}
	case errors.As(err, new(*cli.Exit)):
		return err
	case errors.Is(err, context.DeadlineExceeded):
		return &cli.Exit{Code: cli.CodeError, Err: err, Hint: "raise --timeout, or narrow the audit with --since and --until"}
	}
	if err := final(err); errors.As(err, new(*cli.Exit)) {
		return err
	}
	return &cli.Exit{Code: cli.CodeError, Err: err, Hint: cmp.Or(pipeline.Hint(err), "nothing is known of the rest; run it again")}
}

func auditHint(report *audit.Report) string {
	switch repair := report.Repair; {
	case repair != nil && repair.Stopped == audit.StoppedNoDaemon:
		return "the requests are stored; start `cdc run`, which delivers them, and audit again"
	case repair != nil && repair.Stopped != "":
		return "the requests are stored and the daemon goes on with them; audit again later, or give it more time with --wait"
	case repair != nil && repair.Left > 0:
		return "there are more missing events than one repair asks for; run it again"
	case repair == nil && report.Differences[audit.Missing].Count > 0:
		return "`cdc audit --repair` has the daemon deliver what is missing; docs/audit.md tells what to do about the rest"
	}
	return "docs/audit.md tells what to do about each kind"
}
