package main

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"time"
)

// recreateTable drops the table and makes it anew while events flow. To heal, it has what was lost delivered again, as an operator would.
func recreateTable(ctx context.Context, s *stage, random *rand.Rand) (func(context.Context) error, error) {
	var create string
	if err := s.click.QueryRow(ctx, `SELECT create_table_query FROM system.tables WHERE database = currentDatabase() AND name = 'event_log'`).Scan(&create); err != nil {
		return nil, err
	}
	if create == "" {
		return nil, errors.New("ClickHouse does not tell how the table is defined")
	}
	s.oracle.lacking.Store(true)
	heal := func(ctx context.Context) error {
		if err := s.inClickHouse(ctx, `CREATE TABLE IF NOT EXISTS`+create[len("CREATE TABLE"):]); err != nil {
			return err
		}
		s.repair(ctx)
		s.oracle.lacking.Store(false)
		return nil
	}
	if err := s.inClickHouse(ctx, `DROP TABLE event_log`); err != nil {
		return heal, err
	}
	sleep(ctx, time.Duration(random.IntN(1000))*time.Millisecond)
	return heal, s.inClickHouse(ctx, create)
}

// repair has the daemon deliver what ClickHouse lacks, until an audit finds nothing.
func (s *stage) repair(ctx context.Context) {
	const base, perEvent = 3 * time.Minute, time.Millisecond // so that a busy machine is no violation
	limit := base + time.Duration(s.journal.len())*perEvent
	ctx, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	var out string
	var err error
	repaired := poll(ctx, limit, func() bool {
		out, err = command(ctx, s.o.logs, "./cdc", "audit", "--repair", "--slot="+slot, "--database-url="+s.pg.URL("postgres"), "--clickhouse-url="+s.ch.URL("default"))
		return err == nil
	})
	if !repaired {
		s.violate(fmt.Sprintf("repair: ClickHouse was made anew, and cdc audit --repair does not bring back all: %.500v", err))
		return
	}
	s.tell(fmt.Sprintf("repaired: %.300s", out))
}
