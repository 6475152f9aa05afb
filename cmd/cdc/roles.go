package main

import (
	"fmt"
	"os"

	"github.com/sluicebox/sluicebox/migrations"
)

type rolesCommand struct {
	Database string `arg:"" enum:"postgres,clickhouse" help:"postgres or clickhouse."`
}

// Help is shown by cdc roles --help.
func (*rolesCommand) Help() string {
	return `Prints SQL that makes the roles of least privilege, to read, and to run as an administrator; it may be run again at any time:

  cdc roles postgres | psql "$ADMIN_URL"
  cdc roles clickhouse | clickhouse-client --database app --multiquery

In Postgres these are sluicebox_owner, which runs "cdc migrate", sluicebox_daemon and sluicebox_replication, which are for DATABASE_URL and
REPLICATION_DATABASE_URL of "cdc run", and sluicebox_api, which is for the service. Give each a password. "cdc migrate" grants them what they
need on the tables, and what a newer release needs besides, each time that it runs. In ClickHouse they are roles, to be given to users.`
}

// Run prints the script.
func (c *rolesCommand) Run() error {
	script := migrations.PostgresRoles
	if c.Database == "clickhouse" {
		script = migrations.ClickHouseRoles
	}
	_, err := fmt.Fprint(os.Stdout, script)
	return err
}
