package main

import (
	"strings"
	"testing"

	"github.com/sluicebox/sluicebox/internal/testdb"
	"github.com/sluicebox/sluicebox/migrations"
)

// TestLeastPrivilege runs everything with the rights that `cdc roles` and `cdc migrate` give, and no more. Other tests do so, too, but for the
// user of ClickHouse, which has any table of its database there.
func TestLeastPrivilege(t *testing.T) {
	t.Parallel()
	server := testdb.OwnClickHouse(t, migrations.ClickHouseGrants(migrations.DaemonRole, "default")...)
	l := migratedLineOn(t, testdb.New(t).OnClickHouse(t, server))
	l.write(t, 100, 10)
	d := l.start(t)
	l.allMarked(t)
	l.write(t, 100, 10)
	l.allMarked(t)
	l.exec(t, `ALTER PUBLICATION sluicebox DROP TABLE event_outbox`)
	l.write(t, 10, 10)
	l.exec(t, `ALTER PUBLICATION sluicebox ADD TABLE event_outbox`)
	l.allMarked(t) // the slot was dropped and created again with these rights
	l.exec(t, `INSERT INTO sluicebox.quarantine (slot, id, reason, lsn, ordinal) VALUES ($1, 1, 'planted', '0/0', 0)`, l.slot)
	for _, args := range []string{
		"status", "quarantine list", "quarantine show 1", "quarantine drop 1 --yes", "quarantine retry 1 --wait 0s",
	} {
		cmd := l.operator(t, strings.Fields(args)...)
		if out, err := cmd.CombinedOutput(); err != nil || args == "status" && !strings.HasPrefix(string(out), "streaming") {
			t.Errorf("cdc %s: %v\n%s", args, err, out)
		}
	}
	if code := d.stop(t); code != 0 {
		t.Errorf("exit code %d, want 0", code)
	}

	t.Run("a replication credential without REPLICATION is told of, with code 3", func(t *testing.T) {
		d := l.start(t, "DATABASE_URL="+l.db.Daemon, "REPLICATION_DATABASE_URL="+l.db.Daemon)
		if code := d.end(t); code != 3 || !strings.Contains(d.text(), "REPLICATION") {
			t.Errorf("code %d:\n%s", code, d.text())
		}
	})
}
