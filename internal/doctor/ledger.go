package doctor

import (
	"context"
	"errors"
	"fmt"
	"strings"

	"github.com/sluicebox/sluicebox/internal/ledger"
	"github.com/sluicebox/sluicebox/internal/pipeline"
	"github.com/sluicebox/sluicebox/migrations"
)

// LedgerSchema is the check whether the tables are those that this program knows.
const LedgerSchema = "ledger.schema"

// ErrNotMigrated says that `cdc migrate` has not brought the database to the schema of this program.
var ErrNotMigrated = errors.New("the schema of the database is not up to date")

func ledgerChecks() []check {
	on := []string{postgresReachable, LedgerSchema}
	return []check{
		{LedgerSchema, on[:1], schema, before},
		{"ledger.grants", on, ledgerGrants, anytime},
		{"ledger.quarantine", on, quarantine, anytime},
		{"ledger.incident", on, incident, anytime},
		{"ledger.rivals", on, rivals, told},
	}
}

// SchemaVersion looks whether the schema of a database is the one that this program knows: [ErrNotMigrated], or [migrations.ErrNewer].
func SchemaVersion(ctx context.Context, q Querier) error {
	has, wants, err := migrations.PostgresVersion(ctx, q)
	switch {
	case err != nil:
		return fmt.Errorf("read the schema version: %w", err)
	case has > wants:
		return fmt.Errorf("%w: it has version %d, this program knows %d", migrations.ErrNewer, has, wants)
	case has < wants:
		return fmt.Errorf("%w: it has version %d, this program needs %d", ErrNotMigrated, has, wants)
	}
	return nil
}

func schema(ctx context.Context, l *look) Finding {
	err := SchemaVersion(ctx, l.pg)
	var f Finding
	switch {
	case err == nil:
		return ok("up to date")
	case errors.Is(err, ErrNotMigrated):
		f = fail("the schema of this program", "run `cdc migrate`", "%v", err)
	case errors.Is(err, migrations.ErrNewer):
		f = fail("the schema of this program", "use the newer release", "%v", err)
	default:
		f = fail("the schema of this program", "GRANT USAGE ON SCHEMA sluicebox TO "+l.role()+"; GRANT SELECT ON ALL TABLES IN SCHEMA sluicebox TO "+l.role(), "%v", err)
	}
	f.Err = err
	return f
}

func ledgerGrants(ctx context.Context, l *look) Finding {
	lacks, err := lacking(ctx, l.pg, `
SELECT p || ' on ' || c.relname FROM pg_class c, unnest(ARRAY['SELECT', 'INSERT', 'UPDATE', 'DELETE']) p
WHERE c.relnamespace = 'sluicebox'::regnamespace AND c.relname IN ('stream', 'batch', 'quarantine', 'incident', 'redelivery')
  AND NOT has_table_privilege(c.oid, p) ORDER BY c.relname, p`)
	if err != nil {
		return unknown(err)
	}
	if len(lacks) > 0 {
		return fail("SELECT, INSERT, UPDATE and DELETE on the tables of schema sluicebox",
			"GRANT SELECT, INSERT, UPDATE, DELETE ON ALL TABLES IN SCHEMA sluicebox TO "+l.role(), "%s lacks %s", l.server.role, strings.Join(lacks, ", "))
	}
	return ok("all that delivery needs")
}

func quarantine(ctx context.Context, l *look) Finding {
	var held int64
	err := l.pg.QueryRow(ctx, `SELECT count(*) FROM sluicebox.quarantine WHERE slot = $1 AND dropped_at IS NULL`, l.config.Replication.Slot).Scan(&held)
	if err != nil {
		return unknown(err)
	}
	if held > 0 {
		return warn("none", "cdc quarantine list", "%d events are held in quarantine and not delivered", held)
	}
	return ok("empty")
}

func incident(ctx context.Context, l *look) Finding {
	var open int64
	var reason, kind string
	err := l.pg.QueryRow(ctx, `SELECT count(*), coalesce(min(reason), ''), coalesce(min(kind), '') FROM sluicebox.incident
WHERE slot = $1 AND ended_at IS NULL`, l.config.Replication.Slot).Scan(&open, &reason, &kind)
	switch {
	case err != nil:
		return unknown(err)
	case kind == "clickhouse":
		return warn("none", "cdc audit --repair", "an incident is open: %s", reason)
	case open > 0:
		return warn("none", "cdc status, and leave `cdc run` running: it heals by itself", "an incident is open: %s", reason)
	}
	return ok("none is open")
}

// rivals asks the ledger for other streams that carry the same rows.
func rivals(ctx context.Context, l *look) Finding {
	r := l.config.Replication
	err := ledger.New(l.pool, r.Slot, r.Schema, r.Table).Only(r.Share).Alone(ctx)
	if rival, is := errors.AsType[*ledger.RivalError](err); is {
		return fail("rows that no other stream carries", pipeline.Hint(rival), "%v", rival)
	}
	if err != nil {
		return unknown(err)
	}
	return ok("no other stream carries these rows")
}
