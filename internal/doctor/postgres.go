package doctor

import (
	"context"
	"fmt"
	"strconv"
	"time"

	"github.com/sluicebox/sluicebox/internal/pipeline"
)

const postgresReachable = "postgres.reachable"

// server is what Postgres says of itself.
type server struct {
	version    int                  // as server_version_num
	settings   map[string][2]string // value and unit
	role       string
	superuser  bool
	recovery   bool
	encrypted  bool // this session
	verified   bool // the server's certificate and its name were
	address    string
	pid        uint32        // of the session, as the server told when it began
	backend    uint32        // as it tells now
	ahead      time.Duration // by how much its clock is ahead of ours
	promptness time.Duration // how long the answer took
}

func postgresChecks() []check {
	on := []string{postgresReachable}
	return []check{
		{postgresReachable, nil, reachPostgres, before},
		{"postgres.version", on, postgresVersion, before},
		{"postgres.minor", on, postgresMinor, anytime},
		{"postgres.primary", on, primary, anytime},
		{"postgres.wal_level", on, walLevel, before},
		{"postgres.replication_slots", on, freeSlots, anytime},
		{"postgres.wal_senders", on, freeSenders, anytime},
		{"postgres.wal_sender_timeout", on, senderTimeout, anytime},
		{"postgres.slot_wal_limit", on, slotWALLimit, anytime},
		{"postgres.idle_slot_timeout", on, idleSlotTimeout, anytime},
		{"postgres.synchronous_standby", on, synchronousStandby, anytime},
		{"postgres.fsync", on, fsync, anytime},
		{"postgres.autovacuum", on, autovacuum, anytime},
		{"postgres.connections", on, freeConnections, anytime},
		{"postgres.statement_timeout", on, statementTimeout, anytime},
		{"postgres.pooler", on, pooler, anytime},
		{"postgres.encryption", on, postgresEncryption, anytime},
		{"postgres.old_transaction", on, oldTransaction, anytime},
		{"postgres.prepared_transaction", on, preparedTransaction, anytime},
	}
}

func reachPostgres(ctx context.Context, l *look) Finding {
	s := &l.server
	asked := time.Now()
	var now time.Time
	err := l.connectPostgres(ctx)
	if err == nil {
		asked = time.Now()
		err = l.pg.QueryRow(ctx, `
SELECT current_setting('server_version_num')::int, current_user, (SELECT rolsuper FROM pg_roles WHERE rolname = current_user),
       pg_is_in_recovery(), coalesce((SELECT ssl FROM pg_stat_ssl WHERE pid = pg_backend_pid()), false), pg_backend_pid(), clock_timestamp(),
       (SELECT jsonb_object_agg(name, jsonb_build_array(setting, coalesce(unit, ''))) FROM pg_settings WHERE name = ANY ($1))`, []string{
			"wal_level", "max_replication_slots", "max_wal_senders", "wal_sender_timeout", "max_slot_wal_keep_size", "idle_replication_slot_timeout",
			"synchronous_standby_names", "fsync", "full_page_writes", "autovacuum", "statement_timeout", "max_connections",
			"superuser_reserved_connections", "server_version",
		}).Scan(&s.version, &s.role, &s.superuser, &s.recovery, &s.encrypted, &s.backend, &now, &s.settings)
	}
	if err != nil {
		err = fmt.Errorf("connect to Postgres: %w", err)
		f := fail("Postgres answers at DATABASE_URL", pipeline.Hint(err), "%v", err)
		f.Err = err
		return f
	}
	s.promptness = time.Since(asked)
	s.ahead = offset(asked, time.Now(), now)
	return ok("PostgreSQL %s answers within %s as %s", s.text("server_version"), s.promptness.Round(time.Millisecond), s.role)
}

func (s *server) text(name string) string { return s.settings[name][0] }

// number is a setting in the unit that pg_settings gives it in; 0 if the server does not know it.
func (s *server) number(name string) int64 {
	n, err := strconv.ParseInt(s.settings[name][0], 10, 64)
	if err != nil {
		return 0
	}
	return n
}

func (s *server) duration(name string) time.Duration {
	unit := map[string]time.Duration{"ms": time.Millisecond, "s": time.Second, "min": time.Minute}[s.settings[name][1]]
	return time.Duration(s.number(name)) * unit
}

func orNone(d time.Duration) string {
	if d == 0 {
		return "none"
	}
	return d.String()
}

func postgresVersion(_ context.Context, l *look) Finding {
	const oldest = 150000
	if v := l.server.version; v < oldest {
		return fail("PostgreSQL 15 or newer", "upgrade Postgres", "the server is PostgreSQL %d; 15 is the oldest that works", v/10000)
	}
	return ok("PostgreSQL %s", l.server.text("server_version"))
}

// postgresMinor knows the releases before which ALTER PUBLICATION beside open transactions could lose rows from the stream.
func postgresMinor(_ context.Context, l *look) Finding {
	v := l.server.version
	fixed := map[int]int{15: 13, 16: 9, 17: 5}
	if wants := fixed[v/10000]; v%10000 < wants {
		return warn(fmt.Sprintf("%d.%d or newer", v/10000, wants), "install the newest minor release, then restart Postgres",
			"PostgreSQL %d.%d can lose rows from the stream when a publication is altered beside open transactions", v/10000, v%10000)
	}
	return ok("no release that is known to lose rows")
}

func primary(_ context.Context, l *look) Finding {
	if l.server.recovery {
		return fail("the primary", "name the primary in DATABASE_URL", "this server is a standby, which can't be written to")
	}
	return ok("a primary")
}

func walLevel(_ context.Context, l *look) Finding {
	if level := l.server.text("wal_level"); level != "logical" {
		return fail("logical", "ALTER SYSTEM SET wal_level = logical, then restart Postgres", "wal_level is %s; logical replication needs logical", level)
	}
	return ok("logical")
}

func freeSlots(ctx context.Context, l *look) Finding {
	return oneFree(ctx, l, "max_replication_slots", "all %d replication slots are in use, and none is %s",
		`SELECT count(*), coalesce(bool_or(slot_name = $1), false) FROM pg_replication_slots`)
}

func freeSenders(ctx context.Context, l *look) Finding {
	return oneFree(ctx, l, "max_wal_senders", "all %d WAL senders are in use, and none reads %s",
		`SELECT (SELECT count(*) FROM pg_stat_replication), EXISTS (SELECT FROM pg_replication_slots WHERE slot_name = $1 AND active)`)
}

// oneFree wants one more of what a setting of Postgres limits, unless the stream has its own already. The query tells how many are in use, and
// whether it has.
func oneFree(ctx context.Context, l *look, limit, exhausted, query string) Finding {
	var used int64
	var ours bool
	slot := l.config.Replication.Slot
	if err := l.pg.QueryRow(ctx, query, slot).Scan(&used, &ours); err != nil {
		return unknown(err)
	}
	most := l.server.number(limit)
	if used >= most && !ours {
		return fail("one that is free", fmt.Sprintf("ALTER SYSTEM SET %s = %d, then restart Postgres", limit, most+4), exhausted, most, slot)
	}
	return ok("%d of %d in use", used, most)
}

func senderTimeout(_ context.Context, l *look) Finding {
	const shortest = 5 * time.Second
	timeout := l.server.duration("wal_sender_timeout")
	const mend = "ALTER SYSTEM SET wal_sender_timeout = '1min'; SELECT pg_reload_conf()"
	switch {
	case timeout == 0:
		return warn("a minute or so", mend, "wal_sender_timeout is 0: when the host of a daemon vanishes, its slot stays busy until TCP gives up")
	case timeout < shortest:
		return warn("a minute or so", mend, "wal_sender_timeout is %s: a short stall ends the stream", timeout)
	}
	return ok("%s", timeout)
}

func slotWALLimit(_ context.Context, l *look) Finding {
	keep := l.server.number("max_slot_wal_keep_size") // in MB
	if keep < 0 && l.config.MaxSlotWAL == 0 {
		return warn("a limit that fits the disk", "ALTER SYSTEM SET max_slot_wal_keep_size = '50GB'; SELECT pg_reload_conf(), or set CDC_MAX_SLOT_WAL",
			"nothing limits the WAL that a slot keeps: while no daemon delivers, Postgres's disk fills up")
	}
	if keep < 0 {
		return ok("CDC_MAX_SLOT_WAL while a daemon runs")
	}
	return ok("max_slot_wal_keep_size is %d MB", keep)
}

func idleSlotTimeout(_ context.Context, l *look) Finding {
	const shortest = 24 * time.Hour
	timeout := l.server.duration("idle_replication_slot_timeout")
	if timeout > 0 && timeout < shortest {
		return warn("a day or more, or 0", "ALTER SYSTEM SET idle_replication_slot_timeout = '7d'; SELECT pg_reload_conf()",
			"idle_replication_slot_timeout is %s: a daemon that is down for longer loses its slot, and reads the table instead", timeout)
	}
	return ok("%s", orNone(timeout))
}

func synchronousStandby(ctx context.Context, l *look) Finding {
	names := l.server.text("synchronous_standby_names")
	if names == "" {
		return ok("none is asked for")
	}
	var attached, hidden int64
	err := l.pg.QueryRow(ctx, `SELECT count(*) FILTER (WHERE sync_state IN ('sync', 'quorum')), count(*) FILTER (WHERE sync_state IS NULL)
FROM pg_stat_replication`).Scan(&attached, &hidden)
	if err != nil {
		return unknown(err)
	}
	switch {
	case attached > 0:
		return ok("%d attached", attached)
	case hidden > 0:
		return skip("this role does not see the state of standbys; GRANT pg_monitor shows it")
	}
	return fail("a standby of those that synchronous_standby_names lists", "ALTER SYSTEM SET synchronous_standby_names = ''; SELECT pg_reload_conf(), or start the standby",
		"no synchronous standby is attached: every commit waits for one, the daemon's marks too")
}

func fsync(_ context.Context, l *look) Finding {
	for _, name := range []string{"fsync", "full_page_writes"} {
		if l.server.text(name) == "off" {
			return warn("on", "ALTER SYSTEM SET "+name+" = on; SELECT pg_reload_conf()",
				"%s is off: a crash of the machine can lose events that were committed, and what the daemon has remembered of them", name)
		}
	}
	return ok("on")
}

func autovacuum(_ context.Context, l *look) Finding {
	if l.server.text("autovacuum") == "off" {
		return warn("on", "ALTER SYSTEM SET autovacuum = on; SELECT pg_reload_conf()",
			"autovacuum is off: each event leaves a dead row behind when it is marked, and the outbox grows without end")
	}
	return ok("on")
}
