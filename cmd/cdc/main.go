// Command cdc delivers events from a Postgres outbox to ClickHouse, each exactly once.
package main

import (
	"context"
	"os"

	"github.com/sluicebox/sluicebox/internal/cli"
)

// grammar is the command line.
type grammar struct {
	Run     runCommand     `cmd:"" help:"Stream committed events into ClickHouse until told to stop."`
	Migrate migrateCommand `cmd:"" help:"Create or update the tables of both databases, and the publication."`
	Roles   rolesCommand   `cmd:"" help:"Print SQL that makes the roles of least privilege in Postgres or ClickHouse."`

	Health     healthCommand     `cmd:"" help:"Ask the daemon on this machine whether it is ready: exit code 0 if so, 1 with the reason if not."`
	Doctor     doctorCommand     `cmd:"" help:"Look whether databases, grants, settings and host are as delivery needs them, and how to mend what is not."`
	Status     statusCommand     `cmd:"" help:"One look at how delivery is, from Postgres alone."`
	Quarantine quarantineCommand `cmd:"" help:"Rows that ClickHouse can't take: list, show, retry, drop."`
	Tail       tailCommand       `cmd:"" help:"Events as they arrive in ClickHouse, from Postgres alone."`
	Audit      auditCommand      `cmd:"" help:"Prove that both databases hold the same events, or name those that differ."`
}

func main() {
	os.Exit(cli.Main("cdc", func(ctx context.Context) error {
		program := cli.Program{
			Name:   "cdc",
			About:  "Carries events from a Postgres outbox table to ClickHouse, each exactly once, by logical replication.",
			Prefix: "CDC_",
		}
		return program.Run(ctx, &grammar{})
	}))
}
