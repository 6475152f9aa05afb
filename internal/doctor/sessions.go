package doctor

import (
	"context"
	"fmt"
	"time"

	"github.com/sluicebox/sluicebox/internal/cli"
	"github.com/sluicebox/sluicebox/internal/pgurl"
)

// freeConnections counts by pg_stat_database, which hides nothing from any role.
func freeConnections(ctx context.Context, l *look) Finding {
	const daemon = 8 // sessions: a pool of 6, the stream, and one to spare
	var used, limit int64
	err := l.pg.QueryRow(ctx, `SELECT (SELECT sum(numbackends) FROM pg_stat_database),
       least(current_setting('max_connections')::int - current_setting('superuser_reserved_connections')::int,
             nullif((SELECT rolconnlimit FROM pg_roles WHERE rolname = current_user), -1),
             nullif((SELECT datconnlimit FROM pg_database WHERE datname = current_database()), -1))`).Scan(&used, &limit)
	if err != nil {
		return unknown(err)
	}
	most := l.server.number("max_connections") - l.server.number("superuser_reserved_connections")
	switch {
	case limit < daemon:
		return warn(fmt.Sprintf("%d for a daemon", daemon), "ALTER ROLE "+l.role()+" CONNECTION LIMIT -1, or ALTER DATABASE … CONNECTION LIMIT -1",
			"this role or database may have %d sessions at a time", limit)
	case used > most-daemon:
		return warn(fmt.Sprintf("%d that are free", daemon), "close idle sessions, or raise max_connections and restart Postgres",
			"%d of %d connections are in use", used, most)
	}
	return ok("%d of %d in use", used, most)
}

func statementTimeout(_ context.Context, l *look) Finding {
	const shortest = 30 * time.Second
	timeout := l.server.duration("statement_timeout")
	if timeout > 0 && timeout < shortest {
		return warn("30 s or more, or none", "ALTER ROLE "+l.role()+" SET statement_timeout = 0",
			"statement_timeout is %s for this role: marking a large batch may take longer, and would never end", timeout)
	}
	return ok("%s", orNone(timeout))
}

// pooler compares the process that answers with the one that was announced. A pooler announces a number of its own, since it has to tell its
// clients apart when they cancel a query.
func pooler(_ context.Context, l *look) Finding {
	if s := l.server; s.pid != 0 && s.pid != s.backend {
		return warn("Postgres itself", "name the port of Postgres in DATABASE_URL instead of the pooler's",
			"a connection pooler is in between: unless it pools by session, the lock by which daemons elect a leader is lost or never given up")
	}
	return ok("none is in between")
}

func postgresEncryption(_ context.Context, l *look) Finding {
	const mend = "add sslmode=verify-full (and sslrootcert) to DATABASE_URL and REPLICATION_DATABASE_URL"
	s := l.server
	switch plain := pgurl.Plain(l.config.Replication.URL); {
	case !local(s.address) && !s.encrypted:
		return warn("TLS", mend, "the connection to %s is not encrypted: events and passwords can be read on the way", s.address)
	case !local(s.address) && !s.verified:
		return warn("a certificate that is verified", mend,
			"the connection to %s is encrypted, but not sure to be to that server: whoever is in between can read events and passwords", s.address)
	case plain != "":
		return warn("TLS", mend, "the replication connection to %s may not be encrypted: events and passwords can be read on the way", plain)
	case s.verified:
		return ok("TLS, with a certificate that is verified")
	}
	return ok("not needed on one machine")
}

func oldTransaction(ctx context.Context, l *look) Finding {
	oldest := l.config.patience()
	var may bool
	var pid int32
	var age float64
	err := l.pg.QueryRow(ctx, `
SELECT pg_has_role('pg_read_all_stats', 'USAGE'), coalesce(a.pid, 0), coalesce(extract(epoch FROM clock_timestamp() - a.xact_start), 0)::float8
FROM (SELECT) one LEFT JOIN LATERAL (
    SELECT pid, xact_start FROM pg_stat_activity
    WHERE xact_start IS NOT NULL AND (backend_xid IS NOT NULL OR backend_xmin IS NOT NULL) AND backend_type = 'client backend' AND pid <> pg_backend_pid()
    ORDER BY xact_start LIMIT 1) a ON true`).Scan(&may, &pid, &age)
	if err != nil {
		return unknown(err)
	}
	took := time.Duration(age * float64(time.Second))
	switch {
	case took > oldest:
		return warn("transactions of minutes at most", fmt.Sprintf("SELECT pg_terminate_backend(%d)", pid),
			"the transaction of pid %d is open since %s: vacuum removes nothing that is younger, and a slot can't be created", pid, cli.Span(took))
	case !may:
		return skip("this role sees its own sessions only; GRANT pg_read_all_stats shows the others")
	}
	return ok("none is open for longer than %s", oldest)
}

func preparedTransaction(ctx context.Context, l *look) Finding {
	oldest := l.config.patience()
	var n int64
	var gid, database string
	err := l.pg.QueryRow(ctx, `SELECT count(*), coalesce(min(gid), ''), coalesce(min(database), '') FROM pg_prepared_xacts
WHERE prepared < clock_timestamp() - $1 * interval '1 second'`, oldest.Seconds()).Scan(&n, &gid, &database)
	if err != nil {
		return unknown(err)
	}
	if n > 0 {
		return warn("none", fmt.Sprintf("in database %s: ROLLBACK PREPARED %s, or COMMIT PREPARED", database, literal(gid)),
			"%d prepared transactions are older than %s: vacuum removes nothing that is younger, and a slot can't be created", n, oldest)
	}
	return ok("none is older than %s", oldest)
}
