package main

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"strings"
	"time"

	"github.com/ClickHouse/clickhouse-go/v2"
)

// diskFaults fill the disks of the stores.
func diskFaults() []fault {
	hold := [2]time.Duration{time.Second, 4 * time.Second}
	return []fault{
		{name: "disk full, postgres", group: "postgres", needs: needsDisk, hold: hold, inject: fillPostgres},
		{name: "disk full, clickhouse", group: "clickhouse", needs: needsDisk, hold: hold, inject: fillClickHouse},
	}
}

// fillPostgres fills the disk, and writes WAL until Postgres can't any more, which is the end of it.
func fillPostgres(ctx context.Context, s *stage, _ *rand.Rand) (func(context.Context) error, error) {
	free, err := s.means.postgresDisk.fill()
	if err != nil && free == nil {
		return nil, err
	}
	heal := func(ctx context.Context) error {
		if err := free(); err != nil {
			return err
		}
		if s.answers(ctx) {
			return nil
		}
		return s.pg.Restart(ctx, "immediate")
	}
	if err != nil {
		return heal, err
	}
	const limit = 10 * time.Second // segments that are used again need no room
	ended := poll(ctx, limit, func() bool {
		ctx, cancel := context.WithTimeout(ctx, time.Second)
		defer cancel()
		_, err := s.admin.Exec(ctx, `SELECT pg_logical_emit_message(false, 'campaign', repeat('x', 1 << 20)), pg_switch_wal()`)
		return err != nil && !s.answers(ctx)
	})
	if !ended {
		return heal, errors.New("postgres has found room for its WAL")
	}
	return heal, nil
}

// answers tells whether Postgres does.
func (s *stage) answers(ctx context.Context) bool {
	ctx, cancel := context.WithTimeout(ctx, time.Second)
	defer cancel()
	return s.admin.Ping(ctx) == nil
}

// fillClickHouse fills the disk until an insert is refused.
func fillClickHouse(ctx context.Context, s *stage, _ *rand.Rand) (func(context.Context) error, error) {
	if err := s.inClickHouse(ctx, `CREATE TABLE IF NOT EXISTS filler (n UInt64) ENGINE = MergeTree ORDER BY n`); err != nil {
		return nil, err
	}
	definition, err := s.definition(ctx)
	if err != nil {
		return nil, err
	}
	free, err := s.means.clickHouseDisk.fill()
	if err != nil && free == nil {
		return nil, err
	}
	heal := func(ctx context.Context) error {
		if err := free(); err != nil {
			return err
		}
		return s.attachAnew(ctx, definition)
	}
	if err != nil {
		return heal, err
	}
	refused := poll(ctx, 5*time.Second, func() bool {
		err = s.click.Exec(ctx, `INSERT INTO filler SELECT number FROM numbers(1000000)`)
		return err != nil
	})
	if !refused {
		return heal, errors.New("ClickHouse has found room for an insert")
	}
	s.tell(fmt.Sprintf("disk full, clickhouse: %.200v", err))
	return heal, nil
}

// clockFaults move the wall clock of a store, and back.
func clockFaults() []fault {
	jump := func(direction time.Duration) injection {
		return func(ctx context.Context, s *stage, random *rand.Rand) (func(context.Context) error, error) {
			by := direction * time.Duration(120+random.IntN(480)) * time.Second
			heal := func(context.Context) error { return s.means.clock.move(0) }
			if err := s.means.clock.move(by); err != nil {
				return heal, err
			}
			const late = 10 * time.Second
			moved := poll(ctx, late, func() bool {
				var now time.Time
				err := s.admin.QueryRow(ctx, `SELECT clock_timestamp()`).Scan(&now)
				return err == nil && (time.Until(now)-by).Abs() < late
			})
			if !moved {
				return heal, errors.New("the clock did not move")
			}
			return heal, nil
		}
	}
	hold := [2]time.Duration{2 * time.Second, 5 * time.Second}
	return []fault{
		{name: "clock forward by minutes, postgres", group: "postgres", needs: needsClock, hold: hold, inject: jump(1)},
		{name: "clock back by minutes, postgres", group: "postgres", needs: needsClock, hold: hold, inject: jump(-1)},
	}
}

// attachAnew brings back what a full disk has cost, as an operator would within minutes: ClickHouse (26.7) can lose the file with the table's
// definition, and a merge can leave a part with empty files. It takes the parts that such a one was made of again when it reads the table's
// folder anew.
func (s *stage) attachAnew(ctx context.Context, definition string) error {
	const corruptedData = 246
	now, err := s.definition(ctx)
	if err != nil {
		return nil //nolint:nilerr // what else is wrong is not the disk's
	}
	if now == "" {
		s.tell("ClickHouse has lost the definition of its table; attaching the table with it")
		return errors.Join(s.inClickHouse(ctx, `DETACH TABLE event_log`), s.inClickHouse(ctx, `ATTACH`+definition))
	}
	var rows uint64
	err = s.click.QueryRow(ctx, `SELECT count() FROM event_log WHERE NOT ignore(*)`).Scan(&rows)
	var refused *clickhouse.Exception
	if !errors.As(err, &refused) || refused.Code != corruptedData {
		return nil
	}
	s.tell("a merge has left a damaged part; attaching the table anew")
	return errors.Join(s.inClickHouse(ctx, `DETACH TABLE event_log`), s.inClickHouse(ctx, `ATTACH TABLE event_log`))
}

// definition is what comes after CREATE or ATTACH to make the table that there is, of the data that are there. It is empty if ClickHouse can't tell.
func (s *stage) definition(ctx context.Context) (string, error) {
	var id, create string
	if err := s.click.QueryRow(ctx, `SELECT extract(data_paths[1], '([^/]+)/$'), create_table_query FROM system.tables
WHERE database = currentDatabase() AND name = 'event_log'`).Scan(&id, &create); err != nil {
		return "", err
	}
	_, body, found := strings.Cut(create, "event_log ")
	if !found {
		return "", nil
	}
	return " TABLE event_log UUID '" + id + "' " + body, nil
}
