package main

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"slices"
	"strings"
	"time"

	"github.com/sluicebox/sluicebox/internal/cli"
	"github.com/sluicebox/sluicebox/internal/ledger"
)

// chosen are the rows that a command changes.
type chosen struct {
	IDs []int64 `arg:"" optional:"" name:"id" help:"Ids of the rows."`
	All bool    `help:"All that are not dropped."`
}

// Validate wants ids or --all.
func (c *chosen) Validate() error {
	if c.All == (len(c.IDs) > 0) {
		return errors.New("name the ids of the rows, or pass --all: one of the two")
	}
	return nil
}

// rows returns the ids that are meant, in order, each once.
func (c *chosen) rows(ctx context.Context, l *ledger.Ledger, reason string) ([]int64, error) {
	if !c.All {
		return slices.Compact(slices.Sorted(slices.Values(c.IDs))), nil
	}
	return l.Held(ctx, reason)
}

type quarantineRetry struct {
	postgres
	chosen
	cli.Log

	Wait time.Duration `default:"30s" min:"0s" max:"24h" help:"How long to wait for the daemon to take the rows; 0s: not at all."`
}

// Validate checks what the types of the settings can't.
func (c *quarantineRetry) Validate() error {
	return errors.Join(c.postgres.Validate(), c.chosen.Validate())
}

// Help is shown by cdc quarantine retry --help.
func (*quarantineRetry) Help() string {
	return `Mend what the reason names first: the row in the outbox, or the table in ClickHouse. The leading daemon looks whether
ClickHouse has the row already, delivers it if not, and takes it out of quarantine; or puts it back with the new reason. A request
stays until a daemon takes it, however long this command waits. A row that was dropped is wanted again when it is named; --all
leaves dropped rows alone.

It exits with 0 if every row was delivered, or, with --wait 0s, requested.

    cdc quarantine retry 4711 4712
    cdc quarantine retry --all --wait 5m`
}

// Run requests the redelivery and tells what became of it.
func (c *quarantineRetry) Run(ctx context.Context) error {
	return c.operate(ctx, func(l *ledger.Ledger) error {
		ids, err := c.rows(ctx, l, "")
		if err != nil {
			return err
		}
		if len(ids) == 0 {
			fmt.Println("nothing is held in quarantine")
			return nil
		}
		if err := l.Retry(ctx, ids); err != nil {
			return err
		}
		if c.Wait == 0 {
			fmt.Printf("requested: %s\n", cli.Rows(int64(len(ids))))
			return nil
		}
		became, err := c.await(ctx, l, ids)
		if err != nil {
			return err
		}
		leads, err := l.Leads(ctx)
		if err != nil {
			return err
		}
		return tellRetried(os.Stdout, became, leads)
	})
}

// await waits until the daemon has come to every row, or the time is over, and returns what became of them by then.
func (c *quarantineRetry) await(ctx context.Context, l *ledger.Ledger, ids []int64) ([]ledger.Redelivery, error) {
	const pollInterval, progressInterval = 200 * time.Millisecond, 2 * time.Second
	log := c.Logger(os.Stderr)
	poll, progress, over := time.NewTicker(pollInterval), time.NewTicker(progressInterval), time.NewTimer(c.Wait)
	defer poll.Stop()
	defer progress.Stop()
	defer over.Stop()
	for last := false; ; {
		became, err := l.Redeliveries(ctx, ids)
		if err != nil {
			return nil, err
		}
		pending := 0
		for _, r := range became {
			if r.Pending {
				pending++
			}
		}
		if pending == 0 || last {
			return became, nil
		}
		select {
		case <-ctx.Done():
			return nil, ctx.Err()
		case <-over.C:
			last = true
		case <-progress.C:
			log.Info().Int("rows", pending).Int("of", len(ids)).Msg("waiting for the daemon to take the rows")
		case <-poll.C:
		}
	}
}

// tellRetried prints what became of each row. An error says that not all were delivered.
func tellRetried(out io.Writer, became []ledger.Redelivery, leads bool) error {
	text := bufio.NewWriter(out)
	delivered := 0
	for _, r := range became {
		what := "delivered"
		switch {
		case r.Pending && leads:
			what = "still waiting: a daemon leads and has not come to it yet; the request stays"
		case r.Pending:
			what = "still waiting: no daemon leads; the request stays until one does"
		case r.Refused != "":
			what = "refused again: " + cli.OneLine(r.Refused, 0)
		default:
			delivered++
		}
		_, _ = fmt.Fprintf(text, "%d  %s\n", r.ID, what) // Flush has the error
	}
	if err := text.Flush(); err != nil {
		return fmt.Errorf("print what became of the rows: %w", err)
	}
	if delivered < len(became) {
		return fmt.Errorf("%d of %s delivered", delivered, cli.Rows(int64(len(became))))
	}
	return nil
}

type quarantineDrop struct {
	postgres
	chosen

	ReasonLike string `placeholder:"TEXT" help:"With --all: only rows whose reason contains this text, in any case."`
	Yes        bool   `help:"Do not ask. Required where there is no terminal to ask on."`
}

// Validate checks what the types of the settings can't.
func (c *quarantineDrop) Validate() error {
	problems := []error{c.postgres.Validate(), c.chosen.Validate()}
	if c.ReasonLike != "" && !c.All {
		problems = append(problems, errors.New("--reason-like chooses among all rows: pass --all with it"))
	}
	return errors.Join(problems...)
}

// Help is shown by cdc quarantine drop --help.
func (*quarantineDrop) Help() string {
	return `A row that is dropped will not be delivered, by a backfill neither. Its outbox row is not touched and stays unprocessed,
and cdc quarantine list --all still lists it. To have it back: cdc quarantine retry ID.

    cdc quarantine drop 4711
    cdc quarantine drop --all --reason-like infinity --yes`
}

// Run gives the rows up.
func (c *quarantineDrop) Run(ctx context.Context) error {
	return c.operate(ctx, func(l *ledger.Ledger) error {
		ids, err := c.rows(ctx, l, c.ReasonLike)
		if err != nil {
			return err
		}
		if len(ids) == 0 {
			fmt.Println("nothing is in quarantine that could be dropped")
			return nil
		}
		if !c.Yes {
			if err := c.confirm(ctx, l, ids); err != nil {
				return err
			}
		}
		if err := l.Drop(ctx, ids); err != nil {
			return err
		}
		fmt.Printf("dropped: %s\n", cli.Rows(int64(len(ids))))
		return nil
	})
}

// confirm asks on the terminal. Unknown ids are told of before.
func (c *quarantineDrop) confirm(ctx context.Context, l *ledger.Ledger, ids []int64) error {
	if !isTerminal(os.Stdin) || !isTerminal(os.Stderr) {
		return &cli.Exit{
			Code: cli.CodeSettings, Err: errors.New("there is no terminal to ask on whether the rows are to be given up for good"),
			Hint: "pass --yes",
		}
	}
	if _, err := l.Quarantined(ctx, ids); err != nil {
		return err
	}
	fmt.Fprintf(os.Stderr, "%s will not be delivered to ClickHouse. Give up for good? [y/N] ", cli.Rows(int64(len(ids))))
	answer, err := readLine(ctx, os.Stdin)
	if err != nil {
		return err
	}
	switch strings.ToLower(strings.TrimSpace(answer)) {
	case "y", "yes":
		return nil
	}
	return errors.New("nothing was dropped")
}

// readLine reads an answer. A signal ends the waiting, although not the reading.
func readLine(ctx context.Context, in io.Reader) (string, error) {
	type read struct {
		line string
		err  error
	}
	done := make(chan read, 1)
	go func() {
		line, err := bufio.NewReader(in).ReadString('\n')
		done <- read{line, err}
	}()
	select {
	case <-ctx.Done():
		return "", ctx.Err()
	case r := <-done:
		if r.err != nil && !errors.Is(r.err, io.EOF) {
			return "", fmt.Errorf("read the answer: %w", r.err)
		}
		return r.line, nil
	}
}
