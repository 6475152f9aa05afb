package doctor

import (
	"context"
	"fmt"
	"strings"

	"github.com/jackc/pgx/v5/pgconn"

	"github.com/sluicebox/sluicebox/internal/pipeline"
	"github.com/sluicebox/sluicebox/internal/replication"
)

const outboxExists = "outbox.exists"

func roleChecks() []check {
	on := []string{postgresReachable}
	return []check{
		{"role.replication", on, replicationRole, before},
		{"role.superuser", on, superuser, anytime},
		{"role.terminate", on, terminate, anytime},
	}
}

// replicationRole opens a replication connection, as the stream will.
func replicationRole(ctx context.Context, l *look) Finding {
	err := replication.Probe(ctx, l.config.Replication)
	if err != nil {
		f := fail("a role with REPLICATION, and a line for it in pg_hba.conf", pipeline.Hint(err), "%v", err)
		if sqlState(err) == notPrivileged {
			f.Mend = "ALTER ROLE " + identifier(l.replicationUser()) + " REPLICATION"
		}
		f.Err = err
		return f
	}
	return ok("%s opens replication connections", l.replicationUser())
}

func (l *look) replicationUser() string {
	config, err := pgconn.ParseConfig(l.config.Replication.URL)
	if err != nil {
		return l.server.role
	}
	return config.User
}

func superuser(_ context.Context, l *look) Finding {
	if l.server.superuser {
		return warn("a role that may do what the daemon does, and no more", "`cdc roles postgres` makes one; name them in DATABASE_URL and REPLICATION_DATABASE_URL",
			"%s is a superuser", l.server.role)
	}
	return ok("%s is none", l.server.role)
}

// terminate asks whether a standby may end the session of a leader that hangs.
func terminate(ctx context.Context, l *look) Finding {
	user := l.replicationUser()
	var may bool
	err := l.pg.QueryRow(ctx, `
SELECT (SELECT rolsuper FROM pg_roles WHERE rolname = current_user) OR NOT r.rolsuper
   AND (pg_has_role(r.oid, 'USAGE') OR pg_has_role('pg_signal_backend', 'USAGE')) FROM pg_roles r WHERE rolname = $1`, user).Scan(&may)
	if err != nil {
		return unknown(err)
	}
	if !may {
		return warn("membership in the replication role", "GRANT "+identifier(user)+" TO "+l.role(),
			"this role can't end the replication session of %s: a standby can't take over from a daemon that hangs until wal_sender_timeout (%s)",
			user, l.server.duration("wal_sender_timeout"))
	}
	return ok("sessions of %s can be ended", user)
}

// lacking lists the privileges that a role lacks, as GRANT names them.
func lacking(ctx context.Context, q Querier, sql string, args ...any) ([]string, error) {
	rows, err := q.Query(ctx, sql, args...)
	if err != nil {
		return nil, err
	}
	defer rows.Close()
	var names []string
	for rows.Next() {
		var name string
		if err := rows.Scan(&name); err != nil {
			return nil, err
		}
		names = append(names, name)
	}
	return names, rows.Err()
}

// outboxGrants are what delivery does to the outbox.
func outboxGrants(ctx context.Context, l *look) Finding {
	lacks, err := lacking(ctx, l.pg, `
SELECT 'SELECT' WHERE NOT has_table_privilege($1::text::regclass, 'SELECT')
UNION ALL SELECT 'UPDATE (' || string_agg(attname, ', ' ORDER BY attnum) || ')' FROM pg_attribute
WHERE attrelid = $1::text::regclass AND attname IN ('processed', 'processed_at') AND NOT has_column_privilege(attrelid, attnum, 'UPDATE') HAVING count(*) > 0`,
		l.outboxName())
	return granted(l, "ON "+l.outboxName(), lacks, err)
}

func retentionGrant(ctx context.Context, l *look) Finding {
	if l.config.Retention == 0 {
		return skip("CDC_RETENTION is 0: nothing is removed")
	}
	const query = `SELECT CASE WHEN c.relkind = 'p' THEN 'owner' ELSE 'DELETE' END FROM pg_class c WHERE c.oid = $1::text::regclass
  AND NOT CASE WHEN c.relkind = 'p' THEN pg_has_role(c.relowner, 'USAGE') ELSE has_table_privilege(c.oid, 'DELETE') END`
	lacks, err := lacking(ctx, l.pg, query, l.outboxName())
	if err == nil && len(lacks) > 0 && lacks[0] == "owner" {
		return warn("membership in the role that owns the outbox", "GRANT "+identifier(l.outbox.owner)+" TO "+l.role(),
			"only the owner of a partitioned outbox may drop partitions: CDC_RETENTION removes nothing")
	}
	f := granted(l, "ON "+l.outboxName(), lacks, err)
	if f.Result == Fail {
		f.Result, f.Seen = Warn, f.Seen+": CDC_RETENTION removes nothing"
	}
	return f
}

func granted(l *look, on string, lacks []string, err error) Finding {
	if err != nil {
		return unknown(err)
	}
	if len(lacks) > 0 {
		list := strings.Join(lacks, ", ")
		return fail(list+" "+on, fmt.Sprintf("GRANT %s %s TO %s", list, on, l.role()), "%s lacks %s %s", l.server.role, list, on)
	}
	return ok("all that delivery needs")
}
