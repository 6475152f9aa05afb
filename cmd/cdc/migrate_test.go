package main

import (
	"strings"
	"testing"

	"github.com/sluicebox/sluicebox/internal/testdb"
)

// TestMigrateBesideAService migrates the database of a service that has a table users of its own, by the URL that the service uses.
func TestMigrateBesideAService(t *testing.T) {
	t.Parallel()
	db := testdb.New(t)
	pool := db.Postgres(t)
	if _, err := pool.Exec(t.Context(), `CREATE TABLE users (id bigint)`); err != nil {
		t.Fatal(err)
	}
	separator := "?"
	if strings.Contains(db.PostgresURL, "?") {
		separator = "&"
	}
	m := startCDC(t, []string{"DATABASE_URL=" + db.PostgresURL + separator + "pool_max_conns=5", "CLICKHOUSE_URL=" + db.ClickHouseURL}, "migrate")
	if code := m.end(t); code != 0 {
		t.Errorf("code %d: %s", code, m.text())
	}
	var may, other bool
	err := pool.QueryRow(t.Context(), `SELECT has_table_privilege('sluicebox_api', 'event_outbox', 'INSERT'), has_table_privilege('sluicebox_api', 'users', 'SELECT')`).
		Scan(&may, &other)
	if err != nil || !may || other {
		t.Errorf("%v: the API may write events: %t; it may read the service's users: %t", err, may, other)
	}
}
