package main

import (
	"context"
	"fmt"

	"github.com/jackc/pgx/v5"

	"github.com/sluicebox/sluicebox/internal/embedded"
	"github.com/sluicebox/sluicebox/migrations"
)

// credentials are settings of each program: none has more rights than it needs.
type credentials struct{ migrate, api, cdc []string }

// grants are those of the daemon's user in ClickHouse, which takes users from a file when it starts.
func grants() map[string][]string {
	return map[string][]string{migrations.DaemonRole: migrations.ClickHouseGrants(migrations.DaemonRole, "default")}
}

// makeRoles makes the roles of least privilege, as an operator would by `cdc roles`, and returns the settings with their URLs.
func (d *demo) makeRoles(ctx context.Context) (*credentials, error) {
	address := d.postgres.URL("postgres")
	conn, err := pgx.Connect(ctx, address)
	if err != nil {
		return nil, fmt.Errorf("connect to Postgres: %w", err)
	}
	defer func() { _ = conn.Close(ctx) }()
	if _, err := conn.Exec(ctx, migrations.PostgresRoles); err != nil {
		return nil, fmt.Errorf("make roles: %w", err)
	}
	urls := map[string]string{}
	for _, role := range []string{migrations.OwnerRole, migrations.APIRole, migrations.DaemonRole, migrations.ReplicationRole} {
		if _, err := conn.Exec(ctx, `ALTER ROLE `+role+` PASSWORD '`+conn.Config().Password+`'`); err != nil {
			return nil, fmt.Errorf("make roles: %w", err)
		}
		if urls[role], err = embedded.As(address, role); err != nil {
			return nil, err
		}
	}
	target := d.clickhouse.URL("default")
	daemon, err := embedded.As(target, migrations.DaemonRole)
	if err != nil {
		return nil, err
	}
	return &credentials{
		migrate: []string{"DATABASE_URL=" + urls[migrations.OwnerRole], "CLICKHOUSE_URL=" + target},
		api:     []string{"DATABASE_URL=" + urls[migrations.APIRole], "ENVIRONMENT=demo"},
		cdc: []string{
			"DATABASE_URL=" + urls[migrations.DaemonRole], "REPLICATION_DATABASE_URL=" + urls[migrations.ReplicationRole], "CLICKHOUSE_URL=" + daemon,
		},
	}, nil
}
