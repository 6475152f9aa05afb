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

A daemon that starts runs the same checks: it waits or ends with code 3 while delivery could not begin, and logs the other findings.`
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
		return &cli.Exit{Code: cli.CodePreflight, Err: fmt.Errorf("%s failed", checks(n[doctor.Fail]))}
	case doctor.Warn:
		return &cli.Exit{Code: cli.CodeError, Err: fmt.Errorf("nothing failed, but there is a warning from %s", checks(n[doctor.Warn]))}
	default:
		return nil
	}
}

func checks(n int) string {
	if n == 1 {
		return "1 check"
	}
	return fmt.Sprintf("%d checks", n)
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

// examine has a doctor look at everything beside delivery, once both databases answer, and logs what is not well. It goes on until then, or
// until it is told to stop.
func (d *delivery) examine(ctx context.Context, log zerolog.Logger) (stop func()) {
	const again = 15 * time.Second
	ctx, cancel := context.WithCancel(ctx)
	done := make(chan struct{})
	go func() {
		defer close(done)
		tick := time.NewTicker(again)
		defer tick.Stop()
		for {
			report := doctor.Run(ctx, d.examination())
			if ctx.Err() != nil {
				return
			}
			if report.Reached() {
				for _, f := range report.Startup() {
					log.Warn().Str("check", f.Check).Str("seen", f.Seen).Str("wanted", f.Wanted).Str("mend", f.Mend).Msg("not as it should be")
				}
				return
			}
			select {
			case <-tick.C:
			case <-ctx.Done():
				return
			}
		}
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
	for _, result := range []doctor.Result{doctor.Fail, doctor.Warn} {
		for _, f := range report.Findings {
			if f.Result == result {
				fmt.Fprintf(out, "\n%s  %s\n      %s\n      wanted: %s\n      mend:   %s\n", paint(w, colours[result], string(result)), f.Check,
					cli.OneLine(f.Seen, 0), cli.OneLine(f.Wanted, 0), cli.OneLine(f.Mend, 0))
			}
		}
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
