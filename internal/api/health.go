package api

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/sluicebox/sluicebox/internal/trust"
)

// checkTimeout bounds a look at the database. It is below the time-out of most probes, so that they get the reason.
const checkTimeout = 2 * time.Second

// live says that the process can answer at all. It looks at no dependency: a restart would not mend one.
func live(w http.ResponseWriter, _ *http.Request) {
	w.Header().Set("Content-Type", "application/json")
	_, _ = io.WriteString(w, "{\"status\":\"live\"}\n") // a client that went away
}

// ready says whether requests can be served, and in words why not.
func (a *API) ready(w http.ResponseWriter, r *http.Request) {
	if err := check(r.Context(), a.pool); err != nil {
		fail(w, r, err)
		return
	}
	w.Header().Set("Content-Type", "application/json")
	_, _ = io.WriteString(w, "{\"status\":\"ready\"}\n")
}

// check looks whether the database has all that the service needs. Its error is an [unready], without names of hosts or users, which
// are nobody's business; the error it wraps has them.
func check(ctx context.Context, pool *pgxpool.Pool) error {
	ctx, cancel := context.WithTimeout(ctx, checkTimeout)
	defer cancel()
	rows, err := pool.Query(ctx, `
		SELECT name, right_of, to_regclass(name) IS NOT NULL, coalesce(has_table_privilege(to_regclass(name), right_of), false)
		FROM (VALUES ('users', 'SELECT'), ('users', 'INSERT'), ('event_outbox', 'INSERT'), ('idempotency_key', 'SELECT'),
			('idempotency_key', 'INSERT'), ('idempotency_key', 'UPDATE'), ('idempotency_key', 'DELETE')) AS needed (name, right_of)`)
	if s := pool.Stat(); errors.Is(err, context.DeadlineExceeded) && s.AcquiredConns() == s.MaxConns() {
		return fmt.Errorf("%w: %w", unready{reason: "every connection to Postgres is in use"}, err)
	}
	if err != nil {
		return fmt.Errorf("%w: %w", unreachable(err), err)
	}
	type need struct {
		Table, Right    string
		Exists, Allowed bool
	}
	needs, err := pgx.CollectRows(rows, pgx.RowToStructByPos[need])
	if err != nil {
		return fmt.Errorf("%w: %w", unreachable(err), err)
	}
	for _, n := range needs {
		switch {
		case !n.Exists:
			return unready{fmt.Sprintf("the database has no table %s", n.Table), `create the tables with "cdc migrate"`}
		case !n.Allowed:
			return unready{fmt.Sprintf("the database role may not %s %s", n.Right, n.Table), fmt.Sprintf("GRANT %s ON %s TO that role", n.Right, n.Table)}
		}
	}
	return nil
}

// unreachable says in words why Postgres did not answer. It has a hint if waiting will not help.
func unreachable(err error) unready {
	var refused *pgconn.PgError
	if hint := trust.Hint(err); hint != "" {
		return unready{"there is no TLS with Postgres that both sides accept", hint}
	}
	if !errors.As(err, &refused) {
		return unready{reason: "Postgres does not answer"}
	}
	switch refused.Code {
	case "28P01", "28000":
		return unready{"Postgres refused user or password", "correct them in DATABASE_URL"}
	case "3D000":
		return unready{"the database does not exist", "correct its name in DATABASE_URL, or create it"}
	case "42501":
		return unready{"the database role may not connect", "GRANT CONNECT ON DATABASE … TO that role"}
	case "57P03":
		return unready{reason: "Postgres is starting"}
	case "57P01", "57P02":
		return unready{reason: "Postgres is shutting down"}
	case "53300":
		return unready{reason: "Postgres has no connection left"}
	default:
		return unready{reason: "Postgres refused the query (SQLSTATE " + refused.Code + ")"}
	}
}
