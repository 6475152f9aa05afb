package migrations

import (
	"context"
	_ "embed" // the scripts
	"fmt"
	"regexp"
	"strings"

	"github.com/jackc/pgx/v5"
)

// PostgresRoles makes the roles of least privilege in a database: one statement, for an administrator. [Grant] gives them their rights.
//
//go:embed roles/postgres.sql
var PostgresRoles string

// ClickHouseRoles makes the roles in ClickHouse, with their rights on the table in the database of the session: statements that end with a
// semicolon, for an administrator.
//
//go:embed roles/clickhouse.sql
var ClickHouseRoles string

// ClickHouseGrants are the grants of a role in [ClickHouseRoles], without whom they are for and for a given database: for servers that take
// users from a file.
func ClickHouseGrants(role, database string) (grants []string) {
	for _, found := range regexp.MustCompile(`(?m)^(GRANT .*) TO (\w+);$`).FindAllStringSubmatch(ClickHouseRoles, -1) {
		if found[2] == role {
			grant := strings.NewReplacer(" ON event_log", " ON "+database+".event_log", " ON *", " ON "+database+".*").Replace(found[1])
			grants = append(grants, grant)
		}
	}
	return grants
}

// The roles of Postgres.
const (
	OwnerRole       = "sluicebox_owner"
	APIRole         = "sluicebox_api"
	DaemonRole      = "sluicebox_daemon"
	ReplicationRole = "sluicebox_replication"
)

// Grant gives the roles of [PostgresRoles], those that are there, the rights that they need on the tables, and returns what it said to Postgres.
// The session must be the tables' owner's. It is safe when several programs do so at once.
func Grant(ctx context.Context, conn *pgx.Conn, schema, outbox string) (done []string, err error) {
	err = pgx.BeginFunc(ctx, conn, func(tx pgx.Tx) error {
		if _, err := tx.Exec(ctx, `SELECT pg_advisory_xact_lock($1)`, advisoryLock); err != nil {
			return fmt.Errorf("wait for another migration to end: %w", err)
		}
		var api bool // its tables are there: those of a database whose own service has users are not
		if err := tx.QueryRow(ctx, `SELECT to_regclass('idempotency_key') IS NOT NULL`).Scan(&api); err != nil {
			return fmt.Errorf("look for the tables of the API: %w", err)
		}
		for role, statements := range grants(pgx.Identifier{schema}.Sanitize(), pgx.Identifier{schema, outbox}.Sanitize(), api) {
			var exists bool
			if err := tx.QueryRow(ctx, `SELECT EXISTS (SELECT FROM pg_roles WHERE rolname = $1)`, role).Scan(&exists); err != nil {
				return fmt.Errorf("look for role %s: %w", role, err)
			}
			if !exists {
				continue
			}
			for _, statement := range statements {
				if _, err := tx.Exec(ctx, statement); err != nil {
					return fmt.Errorf("%s: %w", statement, err)
				}
			}
			done = append(done, statements...)
		}
		return nil
	})
	return done, err
}

// grants are the rights of each role, those on the tables of the API if they are there. Deleting from the outbox, which CDC_RETENTION needs,
// is not among them.
func grants(schema, outbox string, api bool) map[string][]string {
	all := map[string][]string{
		APIRole: {
			"GRANT USAGE ON SCHEMA " + schema + " TO " + APIRole,
			"GRANT INSERT ON " + outbox + " TO " + APIRole,
		},
		DaemonRole: {
			"GRANT USAGE ON SCHEMA " + schema + " TO " + DaemonRole,
			"GRANT SELECT, UPDATE (processed, processed_at) ON " + outbox + " TO " + DaemonRole,
			"GRANT USAGE ON SCHEMA sluicebox TO " + DaemonRole,
			"GRANT SELECT, INSERT, UPDATE, DELETE ON ALL TABLES IN SCHEMA sluicebox TO " + DaemonRole,
		},
	}
	if api {
		all[APIRole] = append(all[APIRole], "GRANT SELECT, INSERT ON users TO "+APIRole,
			"GRANT SELECT, INSERT, UPDATE, DELETE ON idempotency_key TO "+APIRole)
	}
	return all
}
