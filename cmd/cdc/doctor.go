package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/rs/zerolog"

	"github.com/sluicebox/sluicebox/internal/cli"
	"github.com/sluicebox/sluicebox/internal/doctor"
	"github.com/sluicebox/sluicebox/internal/ops"
)

type doctorCommand struct {
	delivery

	JSON    bool          `name:"json" help:"Print the report as JSON."`
	Timeout time.Duration `default:"30s" min:"1s" max:"10m" help:"How long it may take; what was not looked at by then is skipped."`
}

// Help is shown by cdc doctor --help.
func (*doctorCommand) Help() string {
	return `Looks at Postgres, ClickHouse, grants, settings and this host, and says of each thing whether it is ok, what is wanted if not, and what
mends it. It only reads, takes seconds, and may run beside a daemon. Run it with the daemon's settings, as the daemon's user, and where
the daemon runs: it looks with its eyes.

    ok    as it should be
    warn  delivery works, but not as well or as safely as it could
    fail  delivery can't work, or does not keep its promise, until somebody changes something
    skip  does not apply, or could not be looked at

The exit code is that of the worst: 0 ok, 1 warn, 3 fail; 2 means that a setting is wrong and nothing was looked at. To stop a roll-out
on a failure but not on a warning:

    cdc doctor || [ $? -eq 1 ]
    cdc doctor --json | jq -r '.findings[] | select(.result == "fail") | .check'

A daemon runs the same checks: when it starts, it waits or ends with code 3 while delivery could not begin; after that it looks again
every five minutes. Its status page shows what is not well, and its log what it did not say before.`
}

// Run looks and prints what was found.
func (c *doctorCommand) Run(ctx context.Context) error {
	looking, cancel := context.WithTimeout(ctx, c.Timeout)
	defer cancel()
	report := doctor.Run(looking, c.examination())
	if ctx.Err() != nil {
		return &cli.Exit{Code: cli.CodeError, Err: errors.New("stopped before everything was looked at")}
	}
	var err error
	if c.JSON {
		err = printJSON(os.Stdout, report)
	} else {
		err = printExamination(os.Stdout, report)
	}
	if err != nil {
		return err
	}
	switch n := report.Counts; report.Result {
	case doctor.Fail:
		return &cli.Exit{Code: cli.CodePreflight, Err: fmt.Errorf("%s failed", cli.Count(int64(n[doctor.Fail]), "check"))}
	case doctor.Warn:
		return &cli.Exit{Code: cli.CodeError, Err: fmt.Errorf("nothing failed, but there is a warning from %s", cli.Count(int64(n[doctor.Warn]), "check"))}
	default:
		return nil
	}
}

// examination is what a doctor looks at.
func (d *delivery) examination() doctor.Config {
	var files []string
	for _, url := range []cli.Credential{d.DatabaseURL, d.ReplicationURL, d.ClickHouseURL} {
		if path := url.Path(); path != "" {
			files = append(files, path)
		}
	}
	return doctor.Config{
		Postgres: d.DatabaseURL.Now(), Replication: d.replication(cmp.Or(d.ReplicationURL, d.DatabaseURL)),
		ClickHouse: d.ClickHouseURL.Now(), TargetTable: d.TargetTable,
		BatchRows: d.BatchMaxRows, BatchBytes: int64(d.BatchMaxBytes), InsertDeadline: d.InsertDeadline,
		MaxSlotWAL: int64(d.MaxSlotWAL), Retention: d.Retention, AdminAddr: d.AdminAddr, SecretFiles: files, Host: doctor.ReadHost(),
	}
}

// examine has a doctor look at everything beside delivery, again and again, until it is told to stop.
func (d *delivery) examine(ctx context.Context, metrics *ops.Metrics, log zerolog.Logger) (stop func()) {
	ctx, cancel := context.WithCancel(ctx)
	done := make(chan struct{})
	go func() {
		defer close(done)
		metrics.Examine(ctx, func(ctx context.Context) *doctor.Report { return doctor.Run(ctx, d.examination()) }, log)
	}()
	return func() {
		cancel()
		<-done
	}
}

// printExamination writes a report for people: what is not well first, and how to mend it.
func printExamination(w io.Writer, report *doctor.Report) error {
	out := &strings.Builder{}
	n := report.Counts
	colours := map[doctor.Result]int{doctor.OK: green, doctor.Warn: yellow, doctor.Fail: red}
	fmt.Fprintf(out, "%s: %d failed, %d warned, %d ok, %d skipped; took %.1f s\n", paint(w, colours[report.Result], string(report.Result)),
		n[doctor.Fail], n[doctor.Warn], n[doctor.OK], n[doctor.Skip], report.Seconds)
	for _, f := range report.Unwell() {
		fmt.Fprintf(out, "\n%s  %s\n      %s\n      wanted: %s\n      mend:   %s\n", paint(w, colours[f.Result], string(f.Result)), f.Check,
			cli.OneLine(f.Seen, 0), cli.OneLine(f.Wanted, 0), cli.OneLine(f.Mend, 0))
	}
	out.WriteString("\n")
	table := tabwriter.NewWriter(out, 0, 0, 2, ' ', 0)
	for _, result := range []doctor.Result{doctor.OK, doctor.Skip} {
		for _, f := range report.Findings {
			if f.Result == result {
				_, _ = fmt.Fprintf(table, "%s\t%s\t%s\n", result, f.Check, cli.OneLine(f.Seen, 0)) // a strings.Builder takes everything
			}
		}
	}
	_ = table.Flush()
	if _, err := io.WriteString(w, out.String()); err != nil {
		return fmt.Errorf("print the report: %w", err)
	}
	return nil
}
