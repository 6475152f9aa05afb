package replication

import (
	"context"
	"errors"
	"fmt"

	"github.com/jackc/pgx/v5"
)

// Publication is what a publication publishes, as far as the outbox is concerned. Identity changes whenever the publication
// is dropped and created again, or the table is removed from it and added back: on both occasions the stream silently lacks
// the rows between (FACTS P5).
type Publication struct {
	OID    uint32
	RelOID uint32 // of the table's membership; 0 when the publication is for all tables or a whole schema
}

// ErrNoPublication says that the publication is not there, or does not publish inserts of the outbox.
var ErrNoPublication = errors.New("the publication is missing or lacks the table")

// FindPublication looks the publication up.
func FindPublication(ctx context.Context, q Querier, config Config) (Publication, error) {
	const query = `
SELECT p.oid, coalesce(r.oid, 0) FROM pg_publication p
LEFT JOIN pg_publication_rel r ON r.prpubid = p.oid AND r.prrelid = to_regclass($2)
WHERE p.pubname = $1 AND p.pubinsert
  AND EXISTS (SELECT FROM pg_publication_tables t WHERE t.pubname = $1 AND t.schemaname = $3 AND t.tablename = $4)`
	var found Publication
	err := q.QueryRow(ctx, query, config.Publication, config.qualified(), config.Schema, config.Table).Scan(&found.OID, &found.RelOID)
	if errors.Is(err, pgx.ErrNoRows) {
		return found, fmt.Errorf("publication %s, table %s.%s: %w", config.Publication, config.Schema, config.Table, ErrNoPublication)
	}
	if err != nil {
		return found, fmt.Errorf("look at publication %s: %w", config.Publication, err)
	}
	return found, nil
}

// EnsurePublication creates the publication for inserts of the outbox if there is none, or adds the table to it. Only inserts:
// the marks that the daemon writes must not be streamed back to it (FACTS P15). Must come before the slot (P5).
func EnsurePublication(ctx context.Context, q Querier, config Config) (Publication, error) {
	found, err := FindPublication(ctx, q, config)
	if !errors.Is(err, ErrNoPublication) {
		return found, err
	}
	name := pgx.Identifier{config.Publication}.Sanitize()
	var exists bool
	if err := q.QueryRow(ctx, `SELECT EXISTS (SELECT FROM pg_publication WHERE pubname = $1)`, config.Publication).Scan(&exists); err != nil {
		return found, fmt.Errorf("look at publication %s: %w", config.Publication, err)
	}
	statement := `CREATE PUBLICATION ` + name + ` FOR TABLE ` + config.qualified() + ` WITH (publish = 'insert')`
	if exists {
		statement = `ALTER PUBLICATION ` + name + ` ADD TABLE ` + config.qualified()
	}
	if _, err := q.Exec(ctx, statement); err != nil && sqlState(err) != "42710" { // 42710: another daemon was faster
		return found, fmt.Errorf("create publication %s: %w: %w", config.Publication, ErrNoPublication, err)
	}
	return FindPublication(ctx, q, config)
}

// qualified is the outbox's name as SQL writes it.
func (c Config) qualified() string { return pgx.Identifier{c.Schema, c.Table}.Sanitize() }
