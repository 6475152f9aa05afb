package migrations_test

import (
	"errors"
	"os"
	"regexp"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/sluicebox/sluicebox/internal/testdb"
	"github.com/sluicebox/sluicebox/migrations"
)

// TestReplicatedLayout holds that ClickHouse can read the statements of the replicated layout, and that its table is the plain one but for the
// engine, the cluster and where inserts are remembered. The servers of tests know no cluster: nobody has run it.
func TestReplicatedLayout(t *testing.T) {
	t.Parallel()
	file, err := os.ReadFile("clickhouse-replicated/00001_event_log.sql")
	if err != nil {
		t.Fatal(err)
	}
	db := testdb.Migrated(t)
	ch := db.ClickHouse(t)
	var statements []string
	for statement := range strings.SplitSeq(regexp.MustCompile(`(?m)^--.*\n`).ReplaceAllString(string(file), ""), ";\n") {
		if strings.TrimSpace(statement) == "" {
			continue
		}
		if err := ch.Exec(t.Context(), "EXPLAIN AST "+statement); err != nil {
			t.Errorf("%s: %v", statement, err)
		}
		statements = append(statements, statement)
	}
	if len(statements) != 2 {
		t.Fatalf("%d statements, want the table and the one over it", len(statements))
	}
	alone := strings.NewReplacer("IF NOT EXISTS event_log ON CLUSTER '{cluster}'", "replica", "ReplicatedMergeTree", "MergeTree",
		" replicated_deduplication_window_seconds = 86400,", "", " replicated_deduplication_window", " non_replicated_deduplication_window").Replace(statements[0])
	if err := ch.Exec(t.Context(), alone); err != nil {
		t.Fatalf("%s: %v", alone, err)
	}
	made := map[string]string{}
	for _, table := range []string{"event_log", "replica"} {
		var create string
		if err := ch.QueryRow(t.Context(), `SELECT create_table_query FROM system.tables WHERE database = currentDatabase() AND name = ?`, table).Scan(&create); err != nil {
			t.Fatal(err)
		}
		made[table] = strings.Replace(create, "."+table+" ", " ", 1)
	}
	if diff := cmp.Diff(made["event_log"], made["replica"]); diff != "" {
		t.Error(diff)
	}
}

func TestLayoutIsNotChanged(t *testing.T) {
	t.Parallel()
	db := testdb.Migrated(t)
	if _, err := migrations.Apply(t.Context(), db.Owner, db.ClickHouseURL, migrations.Replicated); !errors.Is(err, migrations.ErrLayout) {
		t.Errorf("a table that is on one server counts as replicated: %v", err)
	}
	if _, err := migrations.Apply(t.Context(), db.Owner, db.ClickHouseURL, migrations.Single); err != nil {
		t.Error(err)
	}
}
