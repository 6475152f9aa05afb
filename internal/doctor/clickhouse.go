package doctor

import (
	"cmp"
	"context"
	"fmt"
	"strconv"
	"strings"
	"time"

	"github.com/sluicebox/sluicebox/internal/cli"
	"github.com/sluicebox/sluicebox/internal/sink"
	"github.com/sluicebox/sluicebox/internal/trust"
)

const clickhouseReachable = "clickhouse.reachable"

// warehouse is what ClickHouse says of itself.
type warehouse struct {
	version   string
	user      string
	readonly  string // settings of this user's queries
	memory    string
	addresses []string
	encrypted bool
	verified  bool          // the server's certificate is
	ahead     time.Duration // by how much its clock is ahead of ours
}

func clickhouseChecks() []check {
	on := []string{clickhouseReachable}
	return []check{
		{clickhouseReachable, nil, reachClickHouse, told},
		{"clickhouse.version", on, clickhouseVersion, anytime},
		{"clickhouse.readonly", on, readonly, anytime},
		{"clickhouse.memory", on, clickhouseMemory, anytime},
		{"clickhouse.encryption", on, clickhouseEncryption, anytime},
	}
}

func reachClickHouse(ctx context.Context, l *look) Finding {
	w := &l.warehouse
	err := l.connectClickHouse()
	asked := time.Now()
	var now time.Time
	if err == nil {
		asked = time.Now()
		err = l.ch.QueryRow(ctx, `SELECT version(), currentUser(), now64(6, 'UTC'),
       (SELECT any(value) FROM system.settings WHERE name = 'readonly'),
       (SELECT any(value) FROM system.settings WHERE name = 'max_memory_usage')`).Scan(&w.version, &w.user, &now, &w.readonly, &w.memory)
	}
	if err != nil {
		mend := cmp.Or(trust.Hint(err), "is ClickHouse up, and CLICKHOUSE_URL right? 9000 is the usual port of clickhouse://, 8123 of http://")
		if sink.Denied(err) {
			mend = "check user and password in CLICKHOUSE_URL"
		}
		f := fail("ClickHouse answers at CLICKHOUSE_URL", mend, "connect to ClickHouse: %v", err)
		f.Err = err
		return f
	}
	took := time.Since(asked)
	w.ahead = offset(asked, time.Now(), now)
	return ok("ClickHouse %s answers within %s as %s", w.version, took.Round(time.Millisecond), w.user)
}

func clickhouseVersion(_ context.Context, l *look) Finding {
	const oldest, tested = 22_08, 25_03 // nowInBlock came with 22.8; what is older than 25.3 was never tried
	major, rest, _ := strings.Cut(l.warehouse.version, ".")
	minor, _, _ := strings.Cut(rest, ".")
	year, err := strconv.Atoi(major)
	month, errMonth := strconv.Atoi(minor)
	if err != nil || errMonth != nil {
		return skip("version %s can't be read", l.warehouse.version)
	}
	switch version := year*100 + month; {
	case version < oldest:
		return fail("22.8 or newer", "upgrade ClickHouse", "ClickHouse %s has no nowInBlock, by which it refuses inserts that are late", l.warehouse.version)
	case version < tested:
		return warn("25.3 or newer", "upgrade ClickHouse, or try this release before you rely on it", "ClickHouse %s is older than what sluicebox is tried with", l.warehouse.version)
	}
	return ok("ClickHouse %s", l.warehouse.version)
}

func readonly(_ context.Context, l *look) Finding {
	if value := l.warehouse.readonly; value != "0" && value != "" {
		return fail("0", "ALTER USER "+l.user()+" SETTINGS readonly = 0, or take readonly out of its profile", "readonly is %s for %s, who can't insert", value, l.warehouse.user)
	}
	return ok("%s may write", l.warehouse.user)
}

func (l *look) user() string { return name(l.warehouse.user) }

// clickhouseMemory holds the limit of a query against what an insert takes: the block, and what compressing and sorting it need.
func clickhouseMemory(_ context.Context, l *look) Finding {
	const times = 8
	limit, err := strconv.ParseInt(l.warehouse.memory, 10, 64)
	if err != nil || limit == 0 {
		return ok("a query has no limit of its own")
	}
	if need := times * l.config.BatchBytes; limit < need {
		return warn(cli.Size(need), fmt.Sprintf("ALTER USER %s SETTINGS max_memory_usage = %d, or lower CDC_BATCH_MAX_BYTES", l.user(), need),
			"max_memory_usage is %s, little for batches of %s: inserts may be refused", cli.Size(limit), cli.Size(l.config.BatchBytes))
	}
	return ok("max_memory_usage is %s", cli.Size(limit))
}

func clickhouseEncryption(_ context.Context, l *look) Finding {
	if l.warehouse.verified {
		return ok("TLS, with a certificate that is verified")
	}
	for _, address := range l.warehouse.addresses {
		switch {
		case cli.Addr(address).Loopback():
		case l.warehouse.encrypted:
			return warn("a certificate that is verified", "remove skip_verify from CLICKHOUSE_URL, and name the authority in sslrootcert",
				"the certificate of %s is not verified: whoever is in between can read events and passwords", address)
		default:
			return warn("TLS", "add secure=true to CLICKHOUSE_URL, with the port of ClickHouse for TLS (9440), or use https://",
				"the connection to %s is not encrypted: events and passwords can be read on the way", address)
		}
	}
	return ok("not needed on one machine")
}
