package migrations_test

import (
	"context"
	"net/url"
	"strings"
	"testing"

	"github.com/jackc/pgx/v5"

	"github.com/sluicebox/sluicebox/internal/testdb"
	"github.com/sluicebox/sluicebox/migrations"
)

func TestMain(m *testing.M) { testdb.Main(m) }

func TestTheOutboxIsNotMadeInTheSchemaOfTheLedger(t *testing.T) {
	t.Parallel()
	db := testdb.New(t)
	// What the search path of a role named sluicebox comes to.
	if _, err := db.Postgres(t).Exec(t.Context(), `CREATE SCHEMA sluicebox`); err != nil {
		t.Fatal(err)
	}
	address, err := url.Parse(db.PostgresURL)
	if err != nil {
		t.Fatal(err)
	}
	query := address.Query()
	query.Set("search_path", "sluicebox,public")
	address.RawQuery = query.Encode()
	if _, err := migrations.Postgres(t.Context(), address.String()); err != nil {
		t.Fatal(err)
	}
	var schemas []string
	if err := db.Postgres(t).QueryRow(t.Context(), `
SELECT array_agg(DISTINCT schemaname::text) FROM pg_tables WHERE tablename IN ('event_outbox', 'users', 'idempotency_key')`).Scan(&schemas); err != nil {
		t.Fatal(err)
	}
	if len(schemas) != 1 || schemas[0] != "public" {
		t.Errorf("the tables are in %q", schemas)
	}
}

// TestClickHouseRoles holds that ClickHouse can read each statement of the script, and that what it grants the owner is enough to migrate. The
// servers of tests take roles from a file alone.
func TestClickHouseRoles(t *testing.T) {
	t.Parallel()
	server := testdb.OwnClickHouse(t, migrations.ClickHouseGrants(migrations.OwnerRole, "default")...)
	own := testdb.New(t).OnClickHouse(t, server)
	for statement := range strings.SplitSeq(migrations.ClickHouseRoles, ";\n") {
		if strings.TrimSpace(statement) == "" {
			continue
		}
		if err := own.ClickHouse(t).Exec(t.Context(), "EXPLAIN AST "+statement); err != nil {
			t.Errorf("%s: %v", statement, err)
		}
	}
	for range 2 {
		if _, err := migrations.Apply(t.Context(), own.Owner, own.Warehouse, migrations.Single); err != nil {
			t.Error(err)
		}
	}
}

// TestPostgresRoles holds that the script may be run again, and that rights are granted to roles that came later than the tables.
func TestPostgresRoles(t *testing.T) {
	t.Parallel()
	db := testdb.Migrated(t)
	pool := db.Postgres(t)
	if _, err := pool.Exec(t.Context(), migrations.PostgresRoles); err != nil {
		t.Fatal(err)
	}
	for _, test := range []struct {
		role, table, right string
		may                bool
	}{
		{migrations.APIRole, "event_outbox", "INSERT", true},
		{migrations.APIRole, "event_outbox", "SELECT", false},
		{migrations.APIRole, "sluicebox.batch", "SELECT", false},
		{migrations.APIRole, "users", "UPDATE", false},
		{migrations.DaemonRole, "event_outbox", "UPDATE", false}, // of two columns only
		{migrations.DaemonRole, "event_outbox", "SELECT", true},
		{migrations.DaemonRole, "event_outbox", "DELETE", false},
		{migrations.DaemonRole, "sluicebox.audit", "INSERT", true},
		{migrations.DaemonRole, "users", "SELECT", false},
		{migrations.ReplicationRole, "event_outbox", "SELECT", false},
	} {
		var may bool
		if err := pool.QueryRow(t.Context(), `SELECT has_table_privilege($1, $2, $3)`, test.role, test.table, test.right).Scan(&may); err != nil || may != test.may {
			t.Errorf("%s may %s %s: %v, want %v; %v", test.role, test.right, test.table, may, test.may, err)
		}
	}
}

// TestDaemonIsNotTheReplicationRole holds that who has the daemon's password can't give the replication role another one. Postgres 15 has no
// membership without SET ROLE.
func TestDaemonIsNotTheReplicationRole(t *testing.T) {
	t.Parallel()
	server := testdb.OwnPostgres(t, nil)
	db := testdb.New(t).OnPostgres(t, server)
	conn, err := pgx.Connect(t.Context(), db.Daemon)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = conn.Close(context.Background()) }() //nolint:usetesting // cleaning up
	var version int
	if err := conn.QueryRow(t.Context(), `SELECT current_setting('server_version_num')::int`).Scan(&version); err != nil {
		t.Fatal(err)
	}
	const firstWithout = 160000
	_, err = conn.Exec(t.Context(), `SET ROLE sluicebox_replication`)
	if may := err == nil; may != (version < firstWithout) {
		t.Errorf("Postgres %d: SET ROLE: %v", version, err)
	}
}
