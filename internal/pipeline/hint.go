package pipeline

import (
	"errors"

	"github.com/jackc/pgx/v5/pgconn"

	"github.com/sluicebox/sluicebox/internal/batch"
	"github.com/sluicebox/sluicebox/internal/decode"
	"github.com/sluicebox/sluicebox/internal/ledger"
	"github.com/sluicebox/sluicebox/internal/replication"
	"github.com/sluicebox/sluicebox/internal/trust"
)

// Reason says why delivery waits, and what an operator can do about it; hint may be empty.
func Reason(err error, hint string) string {
	if hint == "" {
		return err.Error()
	}
	return err.Error() + "; " + hint
}

// Hint says what an operator can do about an error; empty: nothing but wait is known.
func Hint(err error) string {
	var failure *batch.Failure
	var foreign *ForeignSlotError
	var halt *HaltError
	var filter *replication.FilterError
	var rival *ledger.RivalError
	var table *decode.TableError
	var refused *pgconn.PgError
	var connect *pgconn.ConnectError
	switch {
	case errors.As(err, &failure):
		return failure.Hint
	case errors.As(err, &foreign):
		return "choose another CDC_SLOT, or, if nothing needs that slot, SELECT pg_drop_replication_slot('" + foreign.Slot + "')"
	case errors.As(err, &table):
		return "bring the column back, as migrations/postgres defines it; the rows are read from the table then"
	case errors.Is(err, replication.ErrNoPublication):
		return "run `cdc migrate` as the owner of the outbox, which creates the publication"
	case errors.As(err, &filter):
		return filter.Hint()
	case errors.As(err, &rival):
		return "give each stream of an outbox its own CDC_SHARE, see docs/scaling.md; if stream " + rival.Slots[0] + " is to be given up, " +
			"let its daemon deliver what it has planned, end it, and drop its slot"
	case errors.As(err, &halt):
		return halt.Hint
	case errors.Is(err, ledger.ErrFenced):
		return "nothing to do: the other daemon delivers; restart this one to have it stand by"
	case errors.Is(err, ledger.ErrNotVisible):
		return "a missing synchronous standby delays visibility; rows that were deleted meanwhile are passed over once no older transaction is open"
	case errors.As(err, &refused):
		return hintFor(refused)
	case trust.Hint(err) != "":
		return trust.Hint(err)
	case errors.As(err, &connect):
		return "is Postgres up, and DATABASE_URL right?"
	}
	return ""
}

func hintFor(refused *pgconn.PgError) string {
	switch refused.Code {
	case "28P01":
		return "check user and password in DATABASE_URL (and REPLICATION_DATABASE_URL), and pg_hba.conf"
	case "28000":
		return "check user and password in DATABASE_URL (and REPLICATION_DATABASE_URL), and pg_hba.conf; if that asks for a certificate, " +
			"name it in sslcert and sslkey"
	case "3D000":
		return "create the database, or name another one in DATABASE_URL"
	case "42P01", "3F000":
		return "run `cdc migrate`, which creates the tables"
	case "42501":
		return "grant the role what it lacks: REPLICATION, and select, insert and update on the outbox and on schema sluicebox"
	case "53300":
		return "raise max_connections, or close idle sessions"
	case "53400":
		return "raise max_replication_slots or max_wal_senders in postgresql.conf, then restart Postgres"
	case "55000":
		return "Postgres is not in a state for this: is wal_level logical, and the slot usable?"
	case "55006":
		return "another session reads the slot; this daemon waits for it to end"
	case "57P03", "57P01":
		return "Postgres is starting or stopping; this daemon waits for it"
	}
	return ""
}
