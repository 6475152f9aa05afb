package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/jackc/pgx/v5"
)

// used is the processor time that each program has had, by process. Two of them tell who had which share of the machine in between.
type used map[member]time.Duration

// member is one process, and what it is part of.
type member struct {
	part string
	pid  int
}

// used looks at both databases, at this program, and at what it started.
func (s *stage) used(ctx context.Context, programs ...*process) (used, error) {
	rows, err := s.admin.Query(ctx, `SELECT CASE backend_type WHEN 'walsender' THEN 'Postgres, walsender'
WHEN 'client backend' THEN 'Postgres, sessions' ELSE 'Postgres, its own work' END, pid FROM pg_stat_activity`)
	if err != nil {
		return nil, fmt.Errorf("ask Postgres for its processes: %w", err)
	}
	all, err := pgx.CollectRows(rows, func(row pgx.CollectableRow) (p member, err error) {
		err = row.Scan(&p.part, &p.pid)
		return p, err
	})
	if err != nil {
		return nil, fmt.Errorf("ask Postgres for its processes: %w", err)
	}
	all = append(all, member{"ClickHouse", s.ch.PID()}, member{"bench", os.Getpid()})
	for _, p := range programs {
		all = append(all, member{p.name, p.cmd.Process.Pid})
	}
	now := used{}
	for _, p := range all {
		spent, err := spent(p.pid)
		if errors.Is(err, os.ErrNotExist) || errors.Is(err, syscall.ESRCH) {
			continue // ended meanwhile
		}
		if err != nil {
			return nil, fmt.Errorf("processor time of %s: %w", p.part, err)
		}
		now[p] = spent
	}
	return now, nil
}

// spent is the processor time of all threads of a process, as in proc_pid_stat(5). The kernel counts it for user space in hundredths.
func spent(pid int) (time.Duration, error) {
	stat, err := os.ReadFile(filepath.Join("/proc", strconv.Itoa(pid), "stat"))
	if err != nil {
		return 0, err
	}
	const utime, stime = 14 - 3, 15 - 3 // fields from the third on, after the name in parentheses
	fields := strings.Fields(string(stat[strings.LastIndexByte(string(stat), ')')+1:]))
	if len(fields) <= stime {
		return 0, fmt.Errorf("the kernel tells only %d fields", len(fields))
	}
	var ticks int64
	for _, field := range []string{fields[utime], fields[stime]} {
		n, err := strconv.ParseInt(field, 10, 64)
		if err != nil {
			return 0, fmt.Errorf("the kernel tells %q: %w", field, err)
		}
		ticks += n
	}
	return time.Duration(ticks) * (time.Second / 100), nil
}

// since returns what each part has used since an earlier look. What ended in between is not in it.
func (u used) since(before used) map[string]time.Duration {
	parts := map[string]time.Duration{}
	for p, spent := range u {
		parts[p.part] += spent - before[p]
	}
	return parts
}
