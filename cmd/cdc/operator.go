package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"time"

	"github.com/jackc/pgx/v5/pgxpool"
	"golang.org/x/term"

	"github.com/sluicebox/sluicebox/internal/cli"
	"github.com/sluicebox/sluicebox/internal/doctor"
	"github.com/sluicebox/sluicebox/internal/ledger"
	"github.com/sluicebox/sluicebox/internal/pipeline"
	"github.com/sluicebox/sluicebox/migrations"
)

// operate calls do with the ledger of the stream, for a command that needs Postgres alone. Its errors say what to do about them.
func (p *postgres) operate(ctx context.Context, do func(*ledger.Ledger) error) error {
	const conns = 1
	config, err := p.config(conns)
	if err != nil {
		return err
	}
	config.ConnConfig.RuntimeParams["application_name"] = "cdc"
	config.ConnConfig.RuntimeParams["timezone"] = "UTC" // of the times inside of JSON, which Postgres writes
	pool, err := pgxpool.NewWithConfig(ctx, config)
	if err != nil {
		return fmt.Errorf("open Postgres: %w", err)
	}
	defer pool.Close()
	err = checkSchema(ctx, pool)
	if err == nil {
		err = do(p.ledger(pool))
	}
	return explain(err)
}

func checkSchema(ctx context.Context, pool *pgxpool.Pool) error {
	ctx, cancel := context.WithTimeout(ctx, 20*time.Second)
	defer cancel()
	err := doctor.SchemaVersion(ctx, pool)
	switch {
	case errors.Is(err, doctor.ErrNotMigrated):
		return &cli.Exit{Code: cli.CodePreflight, Err: err, Hint: "run `cdc migrate`"}
	case errors.Is(err, migrations.ErrNewer):
		return &cli.Exit{Code: cli.CodePreflight, Err: err, Hint: "use the newer release"}
	}
	return err
}

// explain adds what an operator can do about an error of Postgres.
func explain(err error) error {
	if err == nil || errors.As(err, new(*cli.Exit)) {
		return err
	}
	err = final(err)
	if hint := pipeline.Hint(err); hint != "" && !errors.As(err, new(*cli.Exit)) {
		return &cli.Exit{Code: cli.CodeError, Err: err, Hint: hint}
	}
	return err
}

func printJSON(out io.Writer, value any) error {
	var text bytes.Buffer
	encoder := json.NewEncoder(&text)
	encoder.SetIndent("", "  ")
	encoder.SetEscapeHTML(false)
	if err := encoder.Encode(value); err != nil {
		return fmt.Errorf("print JSON: %w", err)
	}
	if _, err := io.WriteString(out, escapeControls(text.String())); err != nil {
		return fmt.Errorf("print JSON: %w", err)
	}
	return nil
}

// isTerminal says whether a person watches a stream.
func isTerminal(w io.Writer) bool {
	file, ok := w.(*os.File)
	return ok && term.IsTerminal(int(file.Fd()))
}

// Colours of a terminal.
const (
	red    = 31
	green  = 32
	yellow = 33
)

// paint colours text on a terminal.
func paint(w io.Writer, colour int, text string) string {
	if !isTerminal(w) || os.Getenv("NO_COLOR") != "" {
		return text
	}
	return fmt.Sprintf("\x1b[%dm%s\x1b[0m", colour, text)
}
