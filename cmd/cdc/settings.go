package main

import (
	"context"
	"errors"
	"fmt"
	"regexp"
	"strings"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/sluicebox/sluicebox/internal/churl"
	"github.com/sluicebox/sluicebox/internal/cli"
	"github.com/sluicebox/sluicebox/internal/ledger"
	"github.com/sluicebox/sluicebox/internal/pgurl"
	"github.com/sluicebox/sluicebox/internal/replication"
	"github.com/sluicebox/sluicebox/internal/share"
)

// postgres are the settings that every command needs.
type postgres struct {
	DatabaseURL cli.Credential `env:"DATABASE_URL" required:"" help:"Postgres, as a URL; its host may be the folder of a Unix socket."`
	Slot        string         `env:"CDC_SLOT" default:"sluicebox" help:"Replication slot; also the source that each row in ClickHouse names."`
	Table       string         `env:"CDC_TABLE" default:"public.event_outbox" help:"Outbox table, with its schema."`
}

// databases are the settings of a command that needs both databases.
type databases struct {
	postgres

	ClickHouseURL cli.Credential `env:"CLICKHOUSE_URL" name:"clickhouse-url" required:"" help:"ClickHouse: clickhouse://user:password@host:9000/database (native), or http://…:8123/…"`
	Publication   string         `env:"CDC_PUBLICATION" default:"sluicebox" help:"Publication of the outbox."`
	TargetTable   string         `env:"CDC_TARGET_TABLE" default:"event_log" help:"ClickHouse table."`

	cli.Log
}

// stream are the settings of a command that makes or reads the stream.
type stream struct {
	databases

	Share share.Share `env:"CDC_SHARE" placeholder:"I/N" help:"Where N streams carry one outbox: carry the rows whose id leaves I when divided by N, 0/2 or 1/2. Each has a slot, a publication and a daemon of its own. Default: all rows."`
}

// Validate checks what the types of the settings can't.
func (p *postgres) Validate() error {
	var problems []error
	if !regexp.MustCompile(`^[a-z0-9_]{1,63}$`).MatchString(p.Slot) {
		problems = append(problems, fmt.Errorf("CDC_SLOT: %q is not a slot name: 1 to 63 of a-z, 0-9 and _", p.Slot))
	}
	if schema, table := p.outbox(); schema == "" || table == "" {
		problems = append(problems, fmt.Errorf("CDC_TABLE: %q is not schema.table", p.Table))
	}
	if err := pgurl.Problem(p.DatabaseURL.Now()); err != nil {
		problems = append(problems, fmt.Errorf("DATABASE_URL: %w", err))
	}
	return errors.Join(problems...)
}

// Validate checks what the types of the settings can't.
func (d *databases) Validate() error {
	problems := []error{d.postgres.Validate()}
	if d.Publication == "" || len(d.Publication) > 63 {
		problems = append(problems, errors.New("CDC_PUBLICATION: must have 1 to 63 bytes"))
	}
	if d.TargetTable == "" {
		problems = append(problems, errors.New("CDC_TARGET_TABLE: must not be empty"))
	}
	if _, err := churl.Parse(d.ClickHouseURL.Now()); err != nil {
		problems = append(problems, fmt.Errorf("CLICKHOUSE_URL: %w", err))
	}
	return errors.Join(problems...)
}

// outbox is the name of the table and of its schema.
func (p *postgres) outbox() (schema, table string) {
	schema, table, _ = strings.Cut(p.Table, ".")
	return schema, table
}

// config is how a pool of sessions is opened.
func (p *postgres) config(conns int32) (*pgxpool.Config, error) {
	config, err := pgxpool.ParseConfig(p.DatabaseURL.Now())
	if err != nil {
		return nil, fmt.Errorf("parse the Postgres URL: %w", err)
	}
	config.MaxConns = conns
	config.PingTimeout = 5 * time.Second // of a session that was idle: one that a firewall has forgotten costs no more
	if config.ConnConfig.ConnectTimeout == 0 {
		config.ConnConfig.ConnectTimeout = 10 * time.Second
	}
	config.ConnConfig.RuntimeParams["client_encoding"] = "UTF8"
	config.BeforeConnect = func(_ context.Context, c *pgx.ConnConfig) error {
		pgurl.Renew(&c.Config, p.DatabaseURL.Now())
		return nil
	}
	config.AfterConnect = ledger.Prepare
	return config, nil
}

// ledger is that of the stream that the settings name.
func (p *postgres) ledger(pool *pgxpool.Pool) *ledger.Ledger {
	schema, table := p.outbox()
	return ledger.New(pool, p.Slot, schema, table)
}

// replication is the stream that the settings name, read as the given credential.
func (s *stream) replication(url cli.Credential) replication.Config {
	schema, table := s.outbox()
	return replication.Config{URL: url.Now(), Now: url.Now, Slot: s.Slot, Publication: s.Publication, Schema: schema, Table: table, Share: s.Share}
}
