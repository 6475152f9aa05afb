package main

import (
	"context"
	"errors"
	"math/rand/v2"
	"net/url"
	"time"

	"github.com/jackc/pgx/v5"
)

func clickHouseFaults() []fault {
	return []fault{
		{
			name: "clickhouse killed", group: "clickhouse", weight: 3, hold: medium(),
			inject: func(_ context.Context, s *stage, _ *rand.Rand) (func(context.Context) error, error) {
				s.ch.Kill()
				return s.ch.Restart, nil
			},
		},
		{
			name: "clickhouse restarts", group: "clickhouse", hold: brief(),
			inject: func(ctx context.Context, s *stage, _ *rand.Rand) (func(context.Context) error, error) {
				return nil, s.ch.Restart(ctx)
			},
		},
		{
			name: "clickhouse paused", group: "clickhouse", weight: 2, hold: medium(),
			inject: func(_ context.Context, s *stage, _ *rand.Rand) (func(context.Context) error, error) {
				s.ch.Pause()
				return func(context.Context) error { s.ch.Resume(); return nil }, nil
			},
		},
		{name: "too many parts (252)", group: "clickhouse", hold: medium(), inject: inClickHouse(
			`ALTER TABLE event_log MODIFY SETTING parts_to_throw_insert = 1`, `ALTER TABLE event_log RESET SETTING parts_to_throw_insert`)},
		{name: "table missing (60)", group: "clickhouse", hold: medium(), inject: inClickHouse(
			`RENAME TABLE event_log TO event_log_away`, `RENAME TABLE event_log_away TO event_log`)},
		{name: "memory limit exceeded (241)", group: "daemon", hold: medium(), inject: withSetting("max_memory_usage=100000")},
		{name: "too many queries (202)", group: "daemon", hold: medium(), inject: withSetting("max_concurrent_queries_for_user=1")},
		{name: "read-only (164)", group: "daemon", hold: medium(), inject: withSetting("readonly=1")},
		{name: "no grant (497)", group: "daemon", hold: medium(), inject: denying(ungranted)},
		{name: "no free space (243)", group: "clickhouse", hold: medium(), inject: inClickHouse(
			`ALTER TABLE event_log MODIFY SETTING min_free_disk_bytes_to_perform_insert = 1000000000000000`,
			`ALTER TABLE event_log RESET SETTING min_free_disk_bytes_to_perform_insert`)},
		{name: "table read-only (774)", group: "clickhouse", hold: medium(), inject: inClickHouse(
			`ALTER TABLE event_log MODIFY SETTING table_readonly = 1`, `ALTER TABLE event_log MODIFY SETTING table_readonly = 0`)},
		{name: "table dropped and made anew, then repaired", alone: true, most: 2, hold: medium(), inject: recreateTable},
		{name: "window set to 0 and back", alone: true, hold: medium(), inject: inClickHouse(
			`ALTER TABLE event_log MODIFY SETTING non_replicated_deduplication_window = 0`,
			`ALTER TABLE event_log MODIFY SETTING non_replicated_deduplication_window = 10000`)},
		{name: "poison, then redelivered", alone: true, hold: brief(), inject: poisonTable},
		{
			name: "clickhouse away, and /readyz says so", alone: true, hold: brief(),
			inject: func(ctx context.Context, s *stage, _ *rand.Rand) (func(context.Context) error, error) {
				s.links[linkClickHouse].down()
				s.unready(ctx, "ClickHouse is away")
				return s.links[linkClickHouse].up, nil
			},
		},
		{
			name: "postgres away, and /readyz says so", alone: true, hold: brief(),
			inject: func(ctx context.Context, s *stage, _ *rand.Rand) (func(context.Context) error, error) {
				s.links[linkSQL].down()
				s.unready(ctx, "Postgres is away")
				return s.links[linkSQL].up, nil
			},
		},
	}
}

// withSetting starts the daemons with a setting of ClickHouse that makes it refuse what they ask.
func withSetting(setting string) injection {
	return withURL(func(address string) string { return address + "?" + setting })
}

// ungranted starts the daemons with a user of ClickHouse who may not insert, and waits until one has been told so.
func ungranted(ctx context.Context, s *stage, random *rand.Rand) (func(context.Context) error, error) {
	before := s.ungrant.Load()
	heal, err := withURL(func(address string) string {
		u, err := url.Parse(address)
		if err != nil {
			return address
		}
		u.User = url.UserPassword(reader, clickPassword)
		return u.String()
	})(ctx, s, random)
	if err == nil && !poll(ctx, reached, func() bool { return s.ungrant.Load() > before }) {
		err = errors.New("no daemon has come to its insert")
	}
	return heal, err
}

// withURL starts the daemons with another address of ClickHouse.
func withURL(change func(address string) string) injection {
	return func(ctx context.Context, s *stage, _ *rand.Rand) (func(context.Context) error, error) {
		for _, seat := range s.daemons[:2] {
			seat.next("CLICKHOUSE_URL=" + change(s.links[linkClickHouse].through(s.ch.URL("default"))))
		}
		s.killDaemons(ctx)
		return func(ctx context.Context) error {
			s.killDaemons(ctx) // the next start is as always
			return nil
		}, nil
	}
}

func inClickHouse(inject, heal string) injection {
	return func(ctx context.Context, s *stage, _ *rand.Rand) (func(context.Context) error, error) {
		return func(ctx context.Context) error { return s.inClickHouse(ctx, heal) }, s.inClickHouse(ctx, inject)
	}
}

// unready holds that the leader says 503 while a database is away.
func (s *stage) unready(ctx context.Context, why string) {
	const patience = 20 * time.Second
	leader := s.leader(ctx)
	if leader == nil {
		return
	}
	var said string
	if !poll(ctx, patience, func() bool {
		var status int
		status, said = s.get(ctx, leader, "/readyz")
		return status == 503
	}) && ctx.Err() == nil {
		s.violate("health: " + why + ", and /readyz of the leader says: " + said)
	}
}

// poisonTable gives the table a constraint that some events break, until one of them is in quarantine; to heal, it drops the constraint
// and asks for their delivery, as an operator would.
func poisonTable(ctx context.Context, s *stage, random *rand.Rand) (func(context.Context) error, error) {
	count := func(ctx context.Context) (n int, err error) {
		err = s.scan(ctx, []any{&n}, `
SELECT count(*) FROM sluicebox.quarantine q JOIN event_outbox o ON o.id = q.id WHERE o.event_context->>'pad' LIKE '`+refusedWord+`%'`)
		return n, err
	}
	heal := func(ctx context.Context) error {
		if err := s.inClickHouse(ctx, `ALTER TABLE event_log DROP CONSTRAINT IF EXISTS no_refused`); err != nil {
			return err
		}
		var err error
		again := poll(ctx, s.o.recovery, func() bool {
			var n int
			if n, err = count(ctx); err != nil || n == 0 {
				return err == nil
			}
			err = s.sql(ctx, `
INSERT INTO sluicebox.redelivery (slot, id) SELECT q.slot, q.id FROM sluicebox.quarantine q JOIN event_outbox o ON o.id = q.id
WHERE o.event_context->>'pad' LIKE '`+refusedWord+`%' ON CONFLICT DO NOTHING`)
			sleep(ctx, 300*time.Millisecond)
			return false
		})
		if !again && err == nil {
			s.violate("quarantine: events that were asked for are not delivered")
		}
		return err
	}
	if err := s.inClickHouse(ctx, `ALTER TABLE event_log ADD CONSTRAINT no_refused CHECK position(event_context, '`+refusedWord+`') = 0`); err != nil {
		return heal, err
	}
	err := s.load.once(ctx, random.Uint64(), shape{name: "refused", write: func(ctx context.Context, w *writer, tx pgx.Tx) ([]uint64, error) {
		var rows []row
		var keys []uint64
		for len(keys) < 20 || rows[len(rows)-1].kind != refusable {
			r := w.event(false)
			rows, keys = append(rows, r), append(keys, r.key)
		}
		return keys, insertRows(ctx, tx, rows)
	}})
	if err != nil {
		return heal, err
	}
	if !poll(ctx, s.o.recovery, func() bool { n, err := count(ctx); return err == nil && n > 0 }) {
		return heal, errors.New("nothing is in quarantine")
	}
	return heal, nil
}
