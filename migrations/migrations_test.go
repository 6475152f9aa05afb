package migrations_test

import (
	"net/url"
	"testing"

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
