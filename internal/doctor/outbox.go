package doctor

import (
	"context"
	"errors"
	"fmt"
	"strings"

	"github.com/jackc/pgx/v5"

	"github.com/sluicebox/sluicebox/internal/cli"
	"github.com/sluicebox/sluicebox/internal/decode"
)

// outboxTable is the table that events are written to. Of a partitioned one, what the partitions have is counted over all of them.
type outboxTable struct {
	oid          uint32
	owner        string
	kind         string // of pg_class
	persistence  string
	rowSecurity  bool // hides rows from this role
	primaryKey   []string
	bytes        int64
	rows         float64 // the planner's estimate
	fillfactor   int64   // the largest of the parts
	noAutovacuum bool    // of a part
	dead         int64
	live         int64
}

func outboxChecks() []check {
	on := []string{postgresReachable, outboxExists}
	return []check{
		{outboxExists, on[:1], findOutbox, told},
		{"outbox.columns", on, outboxColumns, told},
		{"outbox.grants", on, outboxGrants, anytime},
		{"outbox.retention_grant", on, retentionGrant, anytime},
		{"outbox.primary_key", on, primaryKey, anytime},
		{"outbox.logged", on, logged, anytime},
		{"outbox.row_security", on, rowSecurity, anytime},
		{"outbox.triggers", on, triggers, anytime},
		{"outbox.processed_index", on, processedIndex, anytime},
		{"outbox.fillfactor", on, fillfactor, anytime},
		{"outbox.autovacuum", on, outboxAutovacuum, anytime},
	}
}

func findOutbox(ctx context.Context, l *look) Finding {
	o := &l.outbox
	var found, visible bool
	err := l.pg.QueryRow(ctx, `SELECT to_regclass($1) IS NOT NULL, to_regnamespace($2) IS NULL OR has_schema_privilege(to_regnamespace($2), 'USAGE')`,
		l.outboxName(), identifier(l.config.Replication.Schema)).Scan(&found, &visible)
	switch {
	case err != nil:
		if sqlState(err) != notPrivileged {
			return unknown(err)
		}
		visible = false
	case found:
		err = l.pg.QueryRow(ctx, `
SELECT c.oid, pg_get_userbyid(c.relowner), c.relkind::text, c.relpersistence::text, row_security_active(c.oid), coalesce(pk.columns, '{}'),
       parts.bytes, parts.rows, parts.fillfactor, parts.no_autovacuum, parts.dead, parts.live
FROM pg_class c
LEFT JOIN LATERAL (
    SELECT array_agg(a.attname::text ORDER BY a.attnum) AS columns FROM pg_index i JOIN pg_attribute a ON a.attrelid = c.oid AND a.attnum = ANY (i.indkey)
    WHERE i.indrelid = c.oid AND i.indisprimary) pk ON true
CROSS JOIN LATERAL (
    SELECT coalesce(sum(pg_total_relation_size(p.oid)), 0)::bigint AS bytes, coalesce(sum(greatest(p.reltuples, 0)), 0)::float8 AS rows,
           coalesce(max(coalesce((SELECT option_value::int FROM pg_options_to_table(p.reloptions) WHERE option_name = 'fillfactor'), 100)), 100) AS fillfactor,
           coalesce(bool_or((SELECT NOT option_value::bool FROM pg_options_to_table(p.reloptions) WHERE option_name = 'autovacuum_enabled')), false) AS no_autovacuum,
           coalesce(sum(s.n_dead_tup), 0)::bigint AS dead, coalesce(sum(s.n_live_tup), 0)::bigint AS live
    FROM (SELECT c.oid AS relid WHERE c.relkind <> 'p' UNION ALL SELECT t.relid FROM pg_partition_tree(c.oid) t WHERE t.isleaf AND c.relkind = 'p') tree
    JOIN pg_class p ON p.oid = tree.relid LEFT JOIN pg_stat_user_tables s ON s.relid = p.oid) parts
WHERE c.oid = to_regclass($1)`, l.outboxName()).Scan(&o.oid, &o.owner, &o.kind, &o.persistence, &o.rowSecurity, &o.primaryKey,
			&o.bytes, &o.rows, &o.fillfactor, &o.noAutovacuum, &o.dead, &o.live)
		if err != nil {
			return unknown(err)
		}
	}
	switch {
	case !visible:
		return fail("USAGE on the schema of the outbox", "GRANT USAGE ON SCHEMA "+identifier(l.config.Replication.Schema)+" TO "+l.role(),
			"%s may not look into schema %s", l.server.role, l.config.Replication.Schema)
	case !found:
		return fail("table "+l.outboxName(), "run `cdc migrate`, or set CDC_TABLE", "there is no such table in this database")
	case o.kind != "r" && o.kind != "p":
		return fail("an ordinary or a partitioned table", "set CDC_TABLE to the table itself", "%s is a view, or another thing that WAL does not tell of", l.outboxName())
	}
	return ok("%s, about %.0f rows, %s", l.outboxName(), o.rows, cli.Size(o.bytes))
}

// outboxColumns asks the decoder, and for the pair that marking needs.
func outboxColumns(ctx context.Context, l *look) Finding {
	rows, err := l.pg.Query(ctx, `SELECT attname::text, atttypid FROM pg_attribute WHERE attrelid = $1 AND attnum > 0 AND NOT attisdropped ORDER BY attnum`, l.outbox.oid)
	if err != nil {
		return unknown(err)
	}
	columns, err := pgx.CollectRows(rows, pgx.RowToStructByPos[decode.Column])
	if err != nil {
		return unknown(err)
	}
	const mend = "change the table to what migrations/postgres defines, or migrate it: `cdc migrate`"
	if _, err := decode.NewLayout(l.outboxName(), columns); err != nil {
		wrong, is := errors.AsType[*decode.TableError](err)
		if !is {
			return unknown(err)
		}
		return fail("the columns of an event", mend, "%s", wrong.Problem)
	}
	const boolean, timestamptz = 16, 1184
	for _, want := range []struct {
		name, kind string
		oid        uint32
	}{{"processed", "boolean NOT NULL DEFAULT false", boolean}, {"processed_at", "timestamptz", timestamptz}} {
		has := uint32(0)
		for _, column := range columns {
			if column.Name == want.name {
				has = column.Type
			}
		}
		switch has {
		case want.oid:
		case 0:
			return fail("the columns by which events are marked", "ALTER TABLE "+l.outboxName()+" ADD COLUMN "+want.name+" "+want.kind, "column %s is missing", want.name)
		default:
			return fail("the columns by which events are marked", mend, "column %s has another type than %s", want.name, want.kind)
		}
	}
	return ok("%d columns", len(columns))
}

func primaryKey(_ context.Context, l *look) Finding {
	if key := l.outbox.primaryKey; len(key) != 1 || key[0] != "id" {
		return fail("a primary key on id alone", "ALTER TABLE "+l.outboxName()+" ADD PRIMARY KEY (id)",
			"the primary key is (%s): ids may come twice, and marking a batch reads the whole table", strings.Join(key, ", "))
	}
	return ok("id")
}

func logged(_ context.Context, l *look) Finding {
	if l.outbox.persistence != "p" {
		return fail("a table whose changes are in the WAL", "ALTER TABLE "+l.outboxName()+" SET LOGGED", "the table is unlogged or temporary: its rows are never streamed, and a crash empties it")
	}
	return ok("yes")
}

func rowSecurity(_ context.Context, l *look) Finding {
	if l.outbox.rowSecurity {
		return fail("every row", "ALTER ROLE "+l.role()+" BYPASSRLS", "row security hides rows from %s: they are streamed, and could never be marked", l.server.role)
	}
	return ok("hides nothing from this role")
}

// triggers are those that fire when a row is marked; bit 4 of tgtype is UPDATE.
func triggers(ctx context.Context, l *look) Finding {
	names, err := lacking(ctx, l.pg, `SELECT DISTINCT format('%I ON %s', tgname, tgrelid::regclass) FROM pg_trigger
WHERE tgrelid IN (SELECT relid FROM pg_partition_tree($1) UNION SELECT $1) AND tgparentid = 0 AND NOT tgisinternal AND tgenabled IN ('O', 'A') AND tgtype & 16 > 0 LIMIT 10`, l.outbox.oid)
	if err != nil {
		return unknown(err)
	}
	if len(names) > 0 {
		return warn("no trigger on UPDATE", "DROP TRIGGER "+names[0], "it fires for each event that is marked: %s", strings.Join(names, ", "))
	}
	return ok("none fires when an event is marked")
}

// processedIndex goes by what the indexes depend on: a column that an expression or a condition mentions is there, too.
func processedIndex(ctx context.Context, l *look) Finding {
	names, err := lacking(ctx, l.pg, `
SELECT DISTINCT CASE x.relkind WHEN 'I' THEN '' ELSE 'CONCURRENTLY ' END || i.indexrelid::regclass::text FROM pg_index i
JOIN pg_class x ON x.oid = i.indexrelid AND NOT x.relispartition -- an index of a partition goes with that of the table
JOIN pg_attribute a ON a.attrelid = i.indrelid AND a.attname IN ('processed', 'processed_at')
JOIN pg_depend d ON d.classid = 'pg_class'::regclass AND d.objid = i.indexrelid AND d.refclassid = 'pg_class'::regclass
                AND d.refobjid = i.indrelid AND d.refobjsubid = a.attnum
WHERE i.indrelid IN (SELECT relid FROM pg_partition_tree($1) UNION SELECT $1) LIMIT 10`, l.outbox.oid)
	if err != nil {
		return unknown(err)
	}
	if len(names) > 0 {
		return warn("no index that mentions processed or processed_at", "DROP INDEX "+names[0],
			"%s: marking an event touches every index instead of none, and the table bloats", strings.ReplaceAll(strings.Join(names, ", "), "CONCURRENTLY ", ""))
	}
	return ok("none mentions processed")
}

func fillfactor(_ context.Context, l *look) Finding {
	const most, wanted = 60, 45 // from 50 on, the second version of a row finds less and less room on its page
	if f := l.outbox.fillfactor; f > most {
		return warn(fmt.Sprintf("%d", wanted), fmt.Sprintf("ALTER TABLE %s SET (fillfactor = %d)", l.partName(), wanted),
			"fillfactor is %d: the second version of a row does not fit on its page, so that marking touches every index", f)
	}
	return ok("%d", l.outbox.fillfactor)
}

func outboxAutovacuum(_ context.Context, l *look) Finding {
	if l.outbox.noAutovacuum {
		return warn("on", "ALTER TABLE "+l.partName()+" RESET (autovacuum_enabled)", "autovacuum is off for the table: each event leaves a dead row behind")
	}
	return ok("on")
}

// partName is what storage options are set on.
func (l *look) partName() string {
	if l.outbox.kind == "p" {
		return "each partition of " + l.outboxName()
	}
	return l.outboxName()
}
