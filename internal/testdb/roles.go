package testdb

import (
	"context"
	"fmt"
	"strings"
	"testing"

	"github.com/jackc/pgx/v5"

	"github.com/sluicebox/sluicebox/internal/embedded"
	"github.com/sluicebox/sluicebox/migrations"
)

// Roles are the URLs of the roles of least privilege, which the programs under test run as.
type Roles struct {
	Owner, API, Daemon, Replication string // of Postgres
	Warehouse, WarehouseHTTP        string // the daemon's of ClickHouse, by the native protocol and HTTP
}

// OnPostgres is db with a Postgres of the test's own.
func (db *DB) OnPostgres(tb testing.TB, server *embedded.Postgres) *DB {
	tb.Helper()
	own, roles := *db, *db.Roles
	own.PostgresURL, own.Roles = server.URL("postgres"), &roles
	if err := setPasswords(tb.Context(), own.PostgresURL); err != nil {
		tb.Fatalf("testdb: %v", err)
	}
	if err := roles.ofPostgres(tb.Context(), own.PostgresURL); err != nil {
		tb.Fatalf("testdb: %v", err)
	}
	return &own
}

// OnClickHouse is db with a ClickHouse of the test's own.
func (db *DB) OnClickHouse(tb testing.TB, server *embedded.ClickHouse) *DB {
	tb.Helper()
	own, roles := *db, *db.Roles
	own.ClickHouseURL, own.ClickHouseHTTPURL, own.Roles = server.URL("default"), server.HTTPURL("default"), &roles
	if err := roles.ofClickHouse(&own); err != nil {
		tb.Fatalf("testdb: %v", err)
	}
	return &own
}

// setPasswords makes the roles of Postgres, if they are not there, and lets them log in by the administrator's password. They belong to the
// server, so this is done once.
func setPasswords(ctx context.Context, address string) error {
	config, err := pgx.ParseConfig(address)
	if err != nil {
		return fmt.Errorf("parse the URL of Postgres: %w", err)
	}
	password := strings.ReplaceAll(config.Password, "'", "''")
	statements := []string{migrations.PostgresRoles}
	for _, role := range []string{migrations.OwnerRole, migrations.APIRole, migrations.DaemonRole, migrations.ReplicationRole} {
		statements = append(statements, `ALTER ROLE `+role+` PASSWORD '`+password+`'`)
	}
	return execPostgres(ctx, address, statements...)
}

// ofPostgres gives the roles what they need in a database before there are tables.
func (r *Roles) ofPostgres(ctx context.Context, address string) (err error) {
	if err := execPostgres(ctx, address, migrations.PostgresRoles); err != nil {
		return err
	}
	for role, to := range map[string]*string{
		migrations.OwnerRole: &r.Owner, migrations.APIRole: &r.API, migrations.DaemonRole: &r.Daemon, migrations.ReplicationRole: &r.Replication,
	} {
		if *to, err = embedded.As(address, role); err != nil {
			return err
		}
	}
	return nil
}

// ofClickHouse is for an embedded server, which takes users from a file alone: the daemon's is named as its role. Elsewhere the user is the administrator.
func (r *Roles) ofClickHouse(db *DB) (err error) {
	if r.Warehouse, err = embedded.As(db.ClickHouseURL, migrations.DaemonRole); err != nil {
		return err
	}
	r.WarehouseHTTP, err = embedded.As(db.ClickHouseHTTPURL, migrations.DaemonRole)
	return err
}

// clickHouseUsers are the users of an embedded server. What [migrations.ClickHouseRoles] grants on the table holds for any table of the databases
// of tests: a grant can't name a table in databases to come. TestLeastPrivilege takes the script by its word.
func clickHouseUsers() map[string][]string {
	grants := []string{"GRANT SELECT, INSERT ON test_*.*", "GRANT SELECT, INSERT ON default.*"}
	for _, grant := range migrations.ClickHouseGrants(migrations.DaemonRole, "default") {
		if strings.Contains(grant, " ON system.") {
			grants = append(grants, grant)
		}
	}
	return map[string][]string{migrations.DaemonRole: grants}
}

func execPostgres(ctx context.Context, address string, statements ...string) error {
	conn, err := pgx.Connect(ctx, address)
	if err != nil {
		return fmt.Errorf("connect to Postgres: %w", err)
	}
	defer func() { _ = conn.Close(ctx) }()
	for _, statement := range statements {
		if _, err := conn.Exec(ctx, statement); err != nil {
			return fmt.Errorf("%s: %w", statement, err)
		}
	}
	return nil
}
