package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"os"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/sluicebox/sluicebox/internal/cli"
	"github.com/sluicebox/sluicebox/internal/pipeline"
	"github.com/sluicebox/sluicebox/internal/replication"
	"github.com/sluicebox/sluicebox/migrations"
)

type migrateCommand struct {
	stream

	Layout  migrations.Layout `env:"CDC_TARGET_LAYOUT" default:"single" enum:"single,replicated" help:"How event_log lies in ClickHouse: on the server that is asked, or on every server of the cluster that the macro {cluster} names there."`
	Timeout time.Duration     `default:"5m" min:"1s" help:"How long to wait for the databases and for another migration to end."`
}

// Help is shown by cdc migrate --help.
func (*migrateCommand) Help() string {
	return `Applies the numbered migrations of migrations/postgres and migrations/clickhouse that are not applied yet, then creates the
publication for inserts of the outbox if it is missing, and grants the roles of "cdc roles", where they exist, what they need. It can be run at any time and by several hosts at once. A database that a
newer release has migrated is left alone. The role needs CREATE on the database; the tables it creates belong to it.`
}

// Run applies what is missing.
func (c *migrateCommand) Run(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, c.Timeout)
	defer cancel()
	log := c.Logger(os.Stderr)
	applied, err := migrations.Apply(ctx, c.DatabaseURL.Now(), c.ClickHouseURL.Now(), c.Layout)
	for _, m := range applied {
		log.Info().Str("database", m.Database).Str("migration", m.Name).Msg("migration applied")
	}
	if errors.Is(err, migrations.ErrNewer) {
		return &cli.Exit{Code: cli.CodePreflight, Err: err, Hint: "use the newer release, or an older backup of the database"}
	}
	if errors.Is(err, migrations.ErrLayout) {
		return &cli.Exit{Code: cli.CodePreflight, Err: err, Hint: "leave CDC_TARGET_LAYOUT alone, or move what is in event_log away and drop it and sluicebox_schema_version"}
	}
	if err != nil {
		hint := pipeline.Hint(err)
		if c.Layout == migrations.Replicated {
			hint = cmp.Or(hint, "the servers of ClickHouse need Keeper, the macros {cluster}, {shard} and {replica}, and a cluster of that name; see docs/scaling.md")
		}
		return &cli.Exit{Code: cli.CodePreflight, Err: err, Hint: hint}
	}
	config, err := c.config(1)
	if err != nil {
		return err
	}
	conn, err := pgx.ConnectConfig(ctx, config.ConnConfig)
	if err != nil {
		return fmt.Errorf("connect to Postgres: %w", err)
	}
	defer func() { _ = conn.Close(context.WithoutCancel(ctx)) }() // all is committed by then
	if _, err := replication.EnsurePublication(ctx, conn, c.replication(c.DatabaseURL)); err != nil {
		return &cli.Exit{Code: cli.CodePreflight, Err: err, Hint: pipeline.Hint(err)}
	}
	schema, table := c.outbox()
	granted, err := migrations.Grant(ctx, conn, schema, table)
	if err != nil {
		return &cli.Exit{Code: cli.CodePreflight, Err: err, Hint: "run it as the role that owns the tables"}
	}
	log.Info().Int("applied", len(applied)).Int("grants", len(granted)).Str("publication", c.Publication).Msg("both databases are up to date")
	return nil
}
