package replication

import (
	"context"
	"errors"
	"fmt"

	"github.com/jackc/pgx/v5"

	"github.com/sluicebox/sluicebox/internal/share"
)

// ErrNoPublication says that the publication is not there, or does not publish inserts of the outbox.
var ErrNoPublication = errors.New("the publication is missing or lacks the table")

// FindPublication looks the publication up and returns its identity: a text that changes whenever the publication is altered, or
// dropped and created again, or the table is removed from it and added back. On each of these occasions the stream may silently
// lack the rows between (FACTS P5). A publication that filters rows otherwise than the share of this stream is refused: it would lack rows for
// good, or have those of another stream. So is one that names the
// partitions of a partitioned outbox in the stream: their rows would be taken for those of other tables.
func FindPublication(ctx context.Context, q Querier, config Config) (identity string, err error) {
	const query = `
SELECT concat_ws(' ', p.oid, p.xmin, r.oid, r.xmin,
                 (SELECT string_agg(n.oid || ':' || n.xmin, ',' ORDER BY n.oid) FROM pg_publication_namespace n WHERE n.pnpubid = p.oid)),
       coalesce(pg_get_expr(r.prqual, r.prrelid), ''), l.leaves, coalesce(to_jsonb(p)->>'pubgencols', 'n') <> 'n'
FROM pg_publication p
LEFT JOIN pg_publication_rel r ON r.prpubid = p.oid AND r.prrelid = to_regclass($2)
CROSS JOIN LATERAL (SELECT EXISTS (SELECT FROM pg_class WHERE oid = to_regclass($2) AND relkind = 'p') AND NOT p.pubviaroot) l (leaves)
WHERE p.pubname = $1 AND p.pubinsert
  AND (l.leaves OR EXISTS (SELECT FROM pg_publication_tables t WHERE t.pubname = $1 AND t.schemaname = $3 AND t.tablename = $4))`
	var filter string
	var leaves, generated bool
	err = q.QueryRow(ctx, query, config.Publication, config.qualified(), config.Schema, config.Table).Scan(&identity, &filter, &leaves, &generated)
	if errors.Is(err, pgx.ErrNoRows) {
		return "", fmt.Errorf("publication %s, table %s.%s: %w", config.Publication, config.Schema, config.Table, ErrNoPublication)
	}
	if err != nil {
		return "", fmt.Errorf("look at publication %s: %w", config.Publication, err)
	}
	if leaves {
		return "", fmt.Errorf("publication %s streams the partitions of %s.%s under their own names, and their rows would be passed over: "+
			"ALTER PUBLICATION %s SET (publish_via_partition_root = true)",
			config.Publication, config.Schema, config.Table, pgx.Identifier{config.Publication}.Sanitize())
	}
	if generated { // from PostgreSQL 18 on
		return "", fmt.Errorf("publication %s has generated columns of %s.%s, which events that are read from the table lack: "+
			"ALTER PUBLICATION %s SET (publish_generated_columns = none)",
			config.Publication, config.Schema, config.Table, pgx.Identifier{config.Publication}.Sanitize())
	}
	if has, ok := share.OfFilter(filter); !ok || has != config.Share {
		return "", &FilterError{Config: config, Filter: filter}
	}
	return identity, nil
}

// FilterError says that a publication has other rows than the stream is to carry.
type FilterError struct {
	Config Config
	Filter string // as Postgres prints it; empty: there is none
}

func (e *FilterError) Error() string {
	name := fmt.Sprintf("publication %s, table %s.%s: ", e.Config.Publication, e.Config.Schema, e.Config.Table)
	switch {
	case e.Config.Share.Whole():
		return name + "it has the row filter " + e.Filter + ", and would lack the other rows for good"
	case e.Filter == "":
		return name + "it has no row filter, and CDC_SHARE is " + e.Config.Share.String()
	default:
		return name + "it has the row filter " + e.Filter + ", and CDC_SHARE is " + e.Config.Share.String()
	}
}

// Hint is the statement that makes the publication fit.
func (e *FilterError) Hint() string {
	return `ALTER PUBLICATION ` + pgx.Identifier{e.Config.Publication}.Sanitize() + ` SET TABLE ` + e.Config.filtered() + `; or set CDC_SHARE, see docs/scaling.md`
}

// EnsurePublication creates the publication for inserts of the outbox if there is none, or adds the table to it. Only inserts:
// the marks that the daemon writes must not be streamed back to it (FACTS P15). Rows of a partition come under the outbox's name, if
// there are partitions. Must come before the slot (P5).
func EnsurePublication(ctx context.Context, q Querier, config Config) (identity string, err error) {
	identity, err = FindPublication(ctx, q, config)
	if !errors.Is(err, ErrNoPublication) {
		return identity, err
	}
	name := pgx.Identifier{config.Publication}.Sanitize()
	var exists bool
	if err := q.QueryRow(ctx, `SELECT EXISTS (SELECT FROM pg_publication WHERE pubname = $1)`, config.Publication).Scan(&exists); err != nil {
		return identity, fmt.Errorf("look at publication %s: %w", config.Publication, err)
	}
	statement := `CREATE PUBLICATION ` + name + ` FOR TABLE ` + config.filtered() + ` WITH (publish = 'insert', publish_via_partition_root = true)`
	if exists {
		statement = `ALTER PUBLICATION ` + name + ` ADD TABLE ` + config.filtered()
	}
	_, err = q.Exec(ctx, statement)
	if state := sqlState(err); err != nil && state != "42710" && state != "23505" { // another daemon was faster, or is at the same time
		return identity, fmt.Errorf("create publication %s: %w: %w", config.Publication, ErrNoPublication, err)
	}
	return FindPublication(ctx, q, config)
}

// filtered is the outbox as a publication names it.
func (c Config) filtered() string {
	if c.Share.Whole() {
		return c.qualified()
	}
	return c.qualified() + ` WHERE (` + c.Share.Where("id") + `)`
}

// qualified is the outbox's name as SQL writes it.
func (c Config) qualified() string { return pgx.Identifier{c.Schema, c.Table}.Sanitize() }
