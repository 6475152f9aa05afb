package replication

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"strings"
	"time"

	"github.com/jackc/pglogrepl"
	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"

	"github.com/sluicebox/sluicebox/internal/decode"
	"github.com/sluicebox/sluicebox/internal/pgurl"
	"github.com/sluicebox/sluicebox/internal/share"
)

// SQLSTATEs that matter here. Message texts differ between versions of Postgres; these do not (FACTS P5, P9).
const (
	// objectNotInState: a lost slot, and, as the code of a notice, a publication that could not be loaded.
	objectNotInState   = "55000"
	skippedPublication = objectNotInState
	undefinedObject    = "42704" // no such slot, no such publication
	limitExceeded      = "54000" // a row is more text than Postgres can print
)

// Config says what to read, and as whom.
type Config struct {
	URL         string        // of Postgres; the role needs REPLICATION
	Now         func() string // the URL with user and password as they are now; nil: they don't change
	Slot        string
	Publication string
	Schema      string // of the outbox
	Table       string
	Share       share.Share // of the outbox, that the stream carries
}

// quotedSlot is the slot as the replication grammar takes every name: one that begins with a digit is none without quotes.
func (c Config) quotedSlot() string { return pgx.Identifier{c.Slot}.Sanitize() }

// GapError says that the stream no longer holds every row: only the table itself does.
type GapError struct {
	Kind   string // one word: see the table sluicebox.incident
	Reason string
}

// The kinds of gaps.
const (
	SlotMissing   = "slot_missing"
	SlotLost      = "slot_lost"   // invalidated by Postgres
	SlotMoved     = "slot_moved"  // advanced or created again by somebody else
	Publication   = "publication" // dropped or altered
	OtherCluster  = "cluster"
	OtherTimeline = "timeline"
	OtherTable    = "table"       // rows in the stream lack a column
	Unprintable   = "unprintable" // a row is more text than Postgres can print
	DiskGuard     = "disk_guard"
)

func (e *GapError) Error() string { return e.Reason }

// Gap returns what err says of a stream that no longer holds every row, because the slot or its publication is lost, or what it holds
// can't be read; nil: it says nothing of the kind.
func Gap(err error) *GapError {
	if gap, is := errors.AsType[*GapError](err); is {
		return gap
	}
	if table, is := errors.AsType[*decode.TableError](err); is {
		return &GapError{Kind: OtherTable, Reason: table.Error()}
	}
	return nil
}

// lost makes a [GapError] of an answer of the replication connection that says that the slot or its publication is lost. missing is the
// kind if an object does not exist: the slot when the stream starts, the publication later.
func lost(err error, missing string) error {
	switch sqlState(err) {
	case objectNotInState:
		return &GapError{Kind: SlotLost, Reason: err.Error()}
	case undefinedObject:
		return &GapError{Kind: missing, Reason: err.Error()}
	case limitExceeded:
		return &GapError{Kind: Unprintable, Reason: err.Error()}
	}
	return err
}

func sqlState(err error) string {
	if refused, ok := errors.AsType[*pgconn.PgError](err); ok {
		return refused.Code
	}
	return ""
}

// connect opens a replication connection. Its texts are those that decode expects.
func connect(ctx context.Context, config Config) (*wire, error) {
	parsed, err := pgx.ParseConfig(config.URL)
	if err != nil {
		return nil, fmt.Errorf("parse the replication URL: %w", err)
	}
	c := parsed.Config
	if config.Now != nil {
		pgurl.Renew(&c, config.Now())
	}
	if c.ConnectTimeout == 0 {
		c.ConnectTimeout = ioTimeout
	}
	c.RuntimeParams["replication"] = "database"
	maps.Copy(c.RuntimeParams, decode.Session)
	c.RuntimeParams["application_name"] = "sluicebox replication " + config.Slot
	c.RuntimeParams["client_encoding"] = "UTF8"
	delete(c.RuntimeParams, "statement_timeout")
	for name := range c.RuntimeParams { // of a pool's URL, unknown to the server
		if strings.HasPrefix(name, "pool_") {
			delete(c.RuntimeParams, name)
		}
	}
	w := &wire{}
	c.DialFunc = w.dialer(c.DialFunc)
	if w.PgConn, err = pgconn.ConnectConfig(ctx, &c); err != nil {
		return nil, fmt.Errorf("open a replication connection: %w", err)
	}
	return w, nil
}

// closeConn gives a connection up, also when ctx is done.
func closeConn(ctx context.Context, conn *wire) {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), time.Second)
	defer cancel()
	_ = conn.Close(ctx) // the connection is given up either way
}

// quoteList writes one publication name for the plugin's option, which takes a list of identifiers inside a literal.
func quoteList(name string) string {
	identifier := `"` + strings.ReplaceAll(name, `"`, `""`) + `"`
	return `'` + strings.ReplaceAll(identifier, `'`, `''`) + `'`
}

// Probe opens a replication connection and closes it: it fails where a stream would fail for the credential's sake.
func Probe(ctx context.Context, config Config) error {
	conn, err := connect(ctx, config)
	if err != nil {
		return err
	}
	defer closeConn(ctx, conn)
	if _, err := pglogrepl.IdentifySystem(ctx, conn.PgConn); err != nil {
		return fmt.Errorf("identify the system: %w", err)
	}
	return nil
}
