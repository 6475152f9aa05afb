package main

import (
	"errors"
	"fmt"
	"regexp"
	"strings"

	"github.com/jackc/pgx/v5/pgconn"

	"github.com/sluicebox/sluicebox/internal/cli"
	"github.com/sluicebox/sluicebox/internal/replication"
)

// databases are the settings that every command needs.
type databases struct {
	DatabaseURL   cli.Secret `env:"DATABASE_URL" required:"" help:"Postgres, as a URL; its host may be the folder of a Unix socket."`
	ClickHouseURL cli.Secret `env:"CLICKHOUSE_URL" name:"clickhouse-url" required:"" help:"ClickHouse: clickhouse://user:password@host:9000/database (native), or http://…:8123/…"`

	Slot        string `env:"CDC_SLOT" default:"sluicebox" help:"Replication slot; also the source that each row in ClickHouse names."`
	Publication string `env:"CDC_PUBLICATION" default:"sluicebox" help:"Publication of the outbox."`
	Table       string `env:"CDC_TABLE" default:"public.event_outbox" help:"Outbox table, with its schema."`
	TargetTable string `env:"CDC_TARGET_TABLE" default:"event_log" help:"ClickHouse table."`

	cli.Log
}

// Validate checks what the types of the settings can't.
func (d *databases) Validate() error {
	var problems []error
	if !regexp.MustCompile(`^[a-z0-9_]{1,63}$`).MatchString(d.Slot) {
		problems = append(problems, fmt.Errorf("CDC_SLOT: %q is not a slot name: 1 to 63 of a-z, 0-9 and _", d.Slot))
	}
	if d.Publication == "" || len(d.Publication) > 63 {
		problems = append(problems, errors.New("CDC_PUBLICATION: must have 1 to 63 bytes"))
	}
	if schema, table, ok := strings.Cut(d.Table, "."); !ok || schema == "" || table == "" {
		problems = append(problems, fmt.Errorf("CDC_TABLE: %q is not schema.table", d.Table))
	}
	if d.TargetTable == "" {
		problems = append(problems, errors.New("CDC_TARGET_TABLE: must not be empty"))
	}
	if _, err := pgconn.ParseConfig(string(d.DatabaseURL)); err != nil {
		problems = append(problems, errors.New("DATABASE_URL: not a Postgres URL such as postgres://user:password@host:5432/database"))
	}
	return errors.Join(problems...)
}

// replication is the stream that the settings name, read as the given credential.
func (d *databases) replication(url cli.Secret) replication.Config {
	schema, table, _ := strings.Cut(d.Table, ".")
	return replication.Config{URL: string(url), Slot: d.Slot, Publication: d.Publication, Schema: schema, Table: table}
}
