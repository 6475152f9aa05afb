package main

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"time"

	"github.com/jackc/pgx/v5"
)

// allFaults lists every kind.
func allFaults(o options) []fault {
	return slices.Concat(daemonFaults(o), postgresFaults(), slotFaults(), clickHouseFaults(), diskFaults(), clockFaults(), linkFaults(), writerFaults(), hugeFaults(), apiFaults())
}

// How long faults last.
func brief() [2]time.Duration  { return [2]time.Duration{0, 500 * time.Millisecond} }
func medium() [2]time.Duration { return [2]time.Duration{500 * time.Millisecond, 3 * time.Second} }

// heals makes a heal of statements for Postgres.
func (s *stage) heals(statements ...string) func(context.Context) error {
	return func(ctx context.Context) error {
		var all error
		for _, statement := range statements {
			all = errors.Join(all, s.sql(ctx, statement))
		}
		return all
	}
}

// statements makes a fault of statements for Postgres.
func statements(inject, heal []string) injection {
	return func(ctx context.Context, s *stage, _ *rand.Rand) (func(context.Context) error, error) {
		return s.heals(heal...), s.heals(inject...)(ctx)
	}
}

const (
	reload     = `SELECT pg_reload_conf()`
	daemonsEnd = `SELECT pg_terminate_backend(pid, 5000) FROM pg_stat_activity WHERE usename = 'cdc'`
)

func postgresFaults() []fault {
	restart := func(mode string) fault {
		return fault{
			name: "postgres restarts, " + mode, group: "postgres", hold: brief(),
			inject: func(ctx context.Context, s *stage, _ *rand.Rand) (func(context.Context) error, error) {
				return nil, s.pg.Restart(ctx, mode)
			},
		}
	}
	return []fault{
		restart("immediate"),
		restart("fast"),
		{
			name: "postgres killed", group: "postgres", hold: medium(),
			inject: func(_ context.Context, s *stage, _ *rand.Rand) (func(context.Context) error, error) {
				s.pg.Kill()
				return s.pg.Start, nil
			},
		},
		{
			name: "postgres paused", group: "postgres", hold: medium(),
			inject: func(_ context.Context, s *stage, _ *rand.Rand) (func(context.Context) error, error) {
				s.pg.Pause()
				return func(context.Context) error { s.pg.Resume(); return nil }, nil
			},
		},
		{
			name: "walsender terminated", group: "walsender", weight: 2, hold: brief(),
			inject: statements([]string{`SELECT pg_terminate_backend(active_pid, 5000) FROM pg_replication_slots WHERE active`}, nil),
		},
		{name: "sessions terminated", group: "walsender", weight: 2, hold: brief(), inject: statements([]string{daemonsEnd}, nil)},
		{name: "synchronous standby missing", group: "postgres", hold: medium(), inject: statements(
			[]string{`ALTER SYSTEM SET synchronous_standby_names = 'missing'`, reload},
			[]string{`ALTER SYSTEM RESET synchronous_standby_names`, reload})},
		{name: "rights revoked, of marks", group: "postgres", hold: medium(), inject: denying(statements(
			[]string{`REVOKE UPDATE (processed, processed_at) ON event_outbox FROM cdc`},
			[]string{`GRANT UPDATE (processed, processed_at) ON event_outbox TO cdc`}))},
		{name: "rights revoked, of plans", group: "postgres", hold: medium(), inject: denying(statements(
			[]string{`REVOKE INSERT, UPDATE ON sluicebox.batch FROM cdc`}, []string{`GRANT INSERT, UPDATE ON sluicebox.batch TO cdc`}))},
		{name: "password rotated", group: "postgres", hold: medium(), inject: denying(rotate)},
		{name: "deadlock with the marks", group: "locks", weight: 2, hold: brief(), inject: deadlock},
		{name: "vacuum full", group: "locks", hold: brief(), inject: statements([]string{`VACUUM FULL event_outbox`}, nil)},
		{name: "column added", group: "locks", hold: brief(), inject: addColumn},
	}
}

// denying lets daemons end with code 3 while the fault lasts.
func denying(inject injection) injection {
	return func(ctx context.Context, s *stage, random *rand.Rand) (func(context.Context) error, error) {
		s.denied.Add(1)
		heal, err := inject(ctx, s, random)
		return func(ctx context.Context) error {
			err := heal(ctx)
			const late = 5 * time.Second // a start that was refused just before may take a moment to end
			time.AfterFunc(late, func() { s.denied.Add(-1) })
			return err
		}, err
	}
}

// rotate gives the role of the daemons another password, and, to heal, the daemons that password.
func rotate(ctx context.Context, s *stage, random *rand.Rand) (func(context.Context) error, error) {
	password := fmt.Sprintf("%s-%d", firstPassword, random.Uint32())
	heal := func(ctx context.Context) error {
		err := s.sql(ctx, `ALTER ROLE cdc PASSWORD '`+password+`'`) // again, should the first one have failed
		s.password.Store(&password)
		s.killDaemons(ctx)
		return err
	}
	return heal, s.heals(`ALTER ROLE cdc PASSWORD '`+password+`'`, daemonsEnd)(ctx)
}

// deadlock locks the newest rows one by one, from the last to the first, while the daemon marks them in another order.
func deadlock(ctx context.Context, s *stage, random *rand.Rand) (func(context.Context) error, error) {
	const rows = 40
	ctx, cancel := context.WithTimeout(ctx, transactionTimeout)
	defer cancel()
	first := fmt.Sprintf(`SELECT id FROM event_outbox WHERE NOT processed AND id > (SELECT max(id) FROM event_outbox) - 5000 ORDER BY id DESC LIMIT %d`, rows)
	err := pgx.BeginFunc(ctx, s.admin, func(tx pgx.Tx) error {
		list, err := tx.Query(ctx, first)
		if err != nil {
			return err
		}
		ids, err := pgx.CollectRows(list, pgx.RowTo[int64])
		if err != nil {
			return err
		}
		if len(ids) == 0 {
			return errors.New("nothing is unprocessed")
		}
		for _, id := range ids {
			if _, err := tx.Exec(ctx, `SELECT FROM event_outbox WHERE id = $1 FOR UPDATE`, id); err != nil {
				if refused(err) { // this session was the one to give way
					return nil
				}
				return err
			}
			sleep(ctx, time.Duration(random.IntN(30))*time.Millisecond)
		}
		return nil
	})
	if errors.Is(err, pgx.ErrTxCommitRollback) {
		err = nil
	}
	return nil, err
}

// addedColumn is a column that both tables have since the event with id after.
type addedColumn struct {
	name  string
	after int64
}

// addColumn adds a column to ClickHouse and then to the outbox, in whose rows it has a value from then on.
func addColumn(ctx context.Context, s *stage, random *rand.Rand) (func(context.Context) error, error) {
	c := addedColumn{name: fmt.Sprintf("more_%d", random.Uint32())}
	if err := s.inClickHouse(ctx, `ALTER TABLE event_log ADD COLUMN `+c.name+` Nullable(String)`); err != nil {
		return nil, err
	}
	if err := s.sql(ctx, `ALTER TABLE event_outbox ADD COLUMN `+c.name+` text DEFAULT 'carried'`); err != nil {
		return nil, err
	}
	if err := s.scan(ctx, []any{&c.after}, `SELECT last_value FROM event_outbox_id_seq`); err != nil {
		return nil, err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.columns = append(s.columns, c)
	return nil, nil
}

// checkColumns holds that added columns were carried.
func (s *stage) checkColumns(ctx context.Context) error {
	for _, c := range s.columns {
		var n uint64
		err := s.click.QueryRow(ctx, fmt.Sprintf(`SELECT countIf(%s IS NULL OR %s != 'carried') FROM event_log WHERE id > %d`, c.name, c.name, c.after)).Scan(&n)
		if err != nil {
			return fmt.Errorf("look at added columns: %w", err)
		}
		if n > 0 {
			s.violate(fmt.Sprintf("content: %d events lack the value of column %s", n, c.name))
		}
	}
	return nil
}

// damaging makes earlier losses of the slot old: from the fourth one within an hour on the daemon would wait for minutes, which is a
// promise of its own and tested elsewhere.
func damaging(inject injection) injection {
	return func(ctx context.Context, s *stage, random *rand.Rand) (func(context.Context) error, error) {
		if err := s.sql(ctx, `UPDATE sluicebox.incident SET began_at = began_at - interval '2 hours', ended_at = ended_at - interval '2 hours'`); err != nil {
			return nil, err
		}
		return inject(ctx, s, random)
	}
}

// filtering notes that Postgres skips events and says nothing, so that what the slot says means little until the daemon has noticed.
func filtering(inject injection) injection {
	return damaging(func(ctx context.Context, s *stage, random *rand.Rand) (func(context.Context) error, error) {
		s.oracle.tampered.Store(true)
		return inject(ctx, s, random)
	})
}

const dropSlot = `SELECT pg_terminate_backend(active_pid, 5000), pg_drop_replication_slot(slot_name) FROM pg_replication_slots WHERE slot_name = 'sluicebox'`

func slotFaults() []fault {
	return []fault{
		{name: "slot dropped", group: "slot", hold: brief(), inject: damaging(statements([]string{dropSlot}, nil))},
		{name: "slot advanced", group: "slot", hold: brief(), inject: damaging(statements([]string{
			`SELECT pg_terminate_backend(active_pid, 5000), pg_replication_slot_advance(slot_name, pg_current_wal_lsn())
			 FROM pg_replication_slots WHERE slot_name = 'sluicebox'`,
		}, nil))},
		{name: "slot invalidated", group: "daemon", hold: brief(), inject: damaging(invalidate)},
		{name: "publication dropped", group: "slot", hold: medium(), inject: filtering(dropPublication)},
		{name: "publication altered", group: "slot", hold: brief(), inject: filtering(statements(
			[]string{`ALTER PUBLICATION sluicebox DROP TABLE event_outbox`}, []string{`ALTER PUBLICATION sluicebox ADD TABLE event_outbox`}))},
		{name: "slot dropped by the disk guard", alone: true, hold: brief(), inject: damaging(diskGuard)},
	}
}

// dropPublication drops the publication, which the role of the daemons may not create; an operator does.
func dropPublication(ctx context.Context, s *stage, _ *rand.Rand) (func(context.Context) error, error) {
	heal := func(ctx context.Context) error {
		return again(ctx, func(ctx context.Context) error {
			_, err := command(ctx, s.o.logs, "./cdc", "migrate", "--database-url="+s.pg.URL("postgres"), "--clickhouse-url="+s.ch.URL("default"))
			return err
		})
	}
	return heal, s.sql(ctx, `DROP PUBLICATION sluicebox`)
}

// invalidate has Postgres remove the WAL that the slot needs, while no daemon reads it.
func invalidate(ctx context.Context, s *stage, _ *rand.Rand) (func(context.Context) error, error) {
	s.daemons[0].want(false)
	s.daemons[1].want(false)
	heal := func(ctx context.Context) error {
		err := s.heals(`ALTER SYSTEM RESET max_slot_wal_keep_size`, reload)(ctx)
		s.daemons[0].want(true)
		s.daemons[1].want(true)
		return err
	}
	s.killDaemons(ctx)
	if err := s.heals(`ALTER SYSTEM SET max_slot_wal_keep_size = '1MB'`, reload)(ctx); err != nil {
		return heal, err
	}
	for range 10 {
		err := s.heals(`SELECT pg_logical_emit_message(true, 'campaign', 'filler')`, `SELECT pg_switch_wal()`, `CHECKPOINT`)(ctx)
		if err != nil {
			return heal, err
		}
		var lost bool
		if err := s.scan(ctx, []any{&lost}, `SELECT coalesce(bool_or(wal_status = 'lost'), false) FROM pg_replication_slots WHERE slot_name = $1`, slot); err != nil || lost {
			return heal, err
		}
	}
	return heal, errors.New("the slot is not lost")
}

// diskGuard has more WAL wait for the daemons than CDC_MAX_SLOT_WAL allows, with ClickHouse away.
func diskGuard(ctx context.Context, s *stage, _ *rand.Rand) (func(context.Context) error, error) {
	for _, seat := range s.daemons[:2] {
		seat.next("CDC_MAX_SLOT_WAL=4MiB")
	}
	s.killDaemons(ctx)
	if !poll(ctx, 10*time.Second, func() bool { return s.leader(ctx) != nil }) {
		return nil, errors.New("no daemon leads")
	}
	heal := func(ctx context.Context) error {
		err := s.links[linkClickHouse].up(ctx)
		s.killDaemons(ctx) // the next start is without the limit
		return err
	}
	s.links[linkClickHouse].down()
	for range 10 {
		if err := s.sql(ctx, `SELECT pg_logical_emit_message(false, 'campaign', repeat('x', 1 << 20))`); err != nil {
			return heal, err
		}
	}
	gone := poll(ctx, 20*time.Second, func() bool {
		var n int
		return s.scan(ctx, []any{&n}, `SELECT count(*) FROM pg_replication_slots WHERE slot_name = $1`, slot) == nil && n == 0
	})
	if !gone {
		s.violate("disk guard: more WAL waits than CDC_MAX_SLOT_WAL allows, and the slot is still there")
	}
	return heal, nil
}
