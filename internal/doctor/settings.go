package doctor

import (
	"context"
	"errors"
	"io/fs"
	"os"
	"time"

	"github.com/sluicebox/sluicebox/internal/cli"
)

func settingsChecks() []check {
	return []check{
		{"settings.secret_files", nil, secretFiles, anytime},
		{"settings.admin_addr", nil, adminAddr, anytime},
		{"settings.batch_rows", nil, batchRows, anytime},
	}
}

// bothSides are the checks that compare what was seen elsewhere.
func bothSides() []check {
	return []check{
		{"settings.max_slot_wal", []string{postgresReachable}, maxSlotWAL, anytime},
		{"clocks.postgres", []string{postgresReachable}, clockOfPostgres, anytime},
		{"clocks.clickhouse", []string{clickhouseReachable}, clockOfClickHouse, anytime},
		{"clocks.databases", []string{postgresReachable, clickhouseReachable}, clocksOfDatabases, anytime},
	}
}

func secretFiles(_ context.Context, l *look) Finding {
	const others = 0o007
	for _, path := range l.config.SecretFiles {
		info, err := os.Stat(path)
		switch {
		case errors.Is(err, fs.ErrNotExist):
			continue // settings were read from it; it may be a secret that was mounted for the start alone
		case err != nil:
			return unknown(err)
		case info.Mode().Perm()&others != 0:
			return warn("files that their owner and group alone may read", "chmod o= "+path, "every user of this machine may read or change %s (%s)", path, info.Mode().Perm())
		}
	}
	if len(l.config.SecretFiles) == 0 {
		return ok("none is used")
	}
	return ok("closed to others")
}

func adminAddr(_ context.Context, l *look) Finding {
	if !l.config.AdminAddr.Loopback() {
		return warn("loopback, or a network of operators alone", "set CDC_ADMIN_ADDR=127.0.0.1:8081, or close the port to others by a firewall or network policy",
			"CDC_ADMIN_ADDR is %s: whoever reaches it reads metrics and health without a password", l.config.AdminAddr)
	}
	return ok("%s", l.config.AdminAddr)
}

func batchRows(_ context.Context, l *look) Finding {
	const few = 1000
	if l.config.BatchRows < few {
		return warn("1000 or more", "unset CDC_BATCH_MAX_ROWS", "batches have %d events at most: ClickHouse gets many small parts, and delivery is slow", l.config.BatchRows)
	}
	return ok("%d", l.config.BatchRows)
}

// maxSlotWAL asks who gives up first: the daemon, which drops the slot at a moment of its choice, or Postgres.
func maxSlotWAL(_ context.Context, l *look) Finding {
	keep, ours := l.server.number("max_slot_wal_keep_size")<<20, l.config.MaxSlotWAL
	switch {
	case ours == 0:
		return skip("CDC_MAX_SLOT_WAL is not set")
	case keep > 0 && ours >= keep:
		return warn("less than max_slot_wal_keep_size", "lower CDC_MAX_SLOT_WAL, or raise max_slot_wal_keep_size",
			"CDC_MAX_SLOT_WAL (%s) is not below max_slot_wal_keep_size (%s): Postgres takes the slot away first", cli.Size(ours), cli.Size(keep))
	}
	return ok("%s", cli.Size(ours))
}

// clockLimit is a difference of clocks that shows in what people read: delays, charts, logs of several hosts.
const clockLimit = 2 * time.Second

const syncClocks = "start a time service on both hosts, such as chronyd or systemd-timesyncd: timedatectl set-ntp true"

func clockOfPostgres(_ context.Context, l *look) Finding { return clocks("Postgres", l.server.ahead) }

func clockOfClickHouse(_ context.Context, l *look) Finding {
	return clocks("ClickHouse", l.warehouse.ahead)
}

func clocks(who string, ahead time.Duration) Finding {
	if ahead.Abs() > clockLimit {
		return warn("less than "+clockLimit.String(), syncClocks, "the clocks of %s and of this host are %s apart", who, cli.Span(ahead.Abs()))
	}
	return ok("%s apart from this host's", cli.Span(ahead.Abs()))
}

// clocksOfDatabases matters to what is computed from both: how long events take, and what the retention may remove.
func clocksOfDatabases(_ context.Context, l *look) Finding {
	if apart := l.server.ahead - l.warehouse.ahead; apart.Abs() > clockLimit {
		return warn("less than "+clockLimit.String(), syncClocks,
			"the clocks of Postgres and ClickHouse are %s apart: ingested_at can't be compared with event_date_time", cli.Span(apart.Abs()))
	}
	return ok("%s apart", cli.Span((l.server.ahead - l.warehouse.ahead).Abs()))
}
