package doctor

import (
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

// illness is a way in which a check fails.
type illness struct {
	check string
	seen  string // part of what is seen
	want  Result // Warn if empty
	since int    // the first version of PostgreSQL that can have it; 0: all can

	// What is done to the databases, and what undoes it. With heals, the check must pass once its mend was run, statement by statement.
	pg, ch         []string
	cure, chCure   []string
	heals, chHeals bool

	config func(*Config) // settings that are wrong
	plant  func(*look)   // what no server of a test can be: the check is run on it alone
}

// TestIllnesses has for each check at least one way to fail.
func TestIllnesses(t *testing.T) {
	t.Parallel()
	p := newPatient(t)
	all := slices.Concat(postgresIllnesses(), slotIllnesses(), publicationIllnesses(), outboxIllnesses(), clickhouseIllnesses(), targetIllnesses(),
		settingsIllnesses(), hostIllnesses())
	for _, i := range all {
		if p.version(t) < i.since {
			continue
		}
		t.Run(i.check+": "+i.seen, func(t *testing.T) { p.suffer(t, i) })
	}
	covered := []string{ // with tests of their own
		postgresReachable, clickhouseReachable, "postgres.replication_slots", "postgres.wal_senders", "postgres.pooler", "postgres.old_transaction",
		"postgres.prepared_transaction", "slot.usable", "target.grants", "target.parts", "settings.secret_files",
	}
	for _, i := range all {
		covered = append(covered, i.check)
	}
	covered = slices.Compact(slices.Sorted(slices.Values(covered)))
	if diff := cmp.Diff(slices.Sorted(slices.Values(Checks())), covered); diff != "" {
		t.Errorf("-checks +those that were seen to fail: %s", diff)
	}
}

// version is that of PostgreSQL.
func (p *patient) version(t *testing.T) (major int) {
	t.Helper()
	if err := p.pg.QueryRow(t.Context(), `SELECT current_setting('server_version_num')::int / 10000`).Scan(&major); err != nil {
		t.Fatal(err)
	}
	return major
}

// suffer has a patient suffer from an illness, and heals it.
func (p *patient) suffer(t *testing.T, i illness) {
	t.Helper()
	if i.want == "" {
		i.want = Warn
	}
	config := p.config
	if i.config != nil {
		i.config(&config)
	}
	var f Finding
	if i.plant != nil {
		l := &look{config: config, server: server{role: sqlRole, settings: map[string][2]string{}}}
		i.plant(l)
		if f = judge(t.Context(), i.check, l); f.Result != i.want {
			t.Fatalf("%s: %+v", f.Result, f)
		}
	} else {
		p.exec(t, i.pg...)
		p.execClickHouse(t, i.ch...)
		defer func() {
			p.exec(t, i.cure...)
			p.execClickHouse(t, i.chCure...)
		}()
		f = until(t, config, i.check, i.want)
	}
	if !strings.Contains(f.Seen, i.seen) {
		t.Errorf("it does not say %q: %s", i.seen, f.Seen)
	}
	if f.Wanted == "" || f.Mend == "" {
		t.Errorf("it does not say what is wanted, and what mends it: %+v", f)
	}
	switch {
	case i.heals:
		p.exec(t, statements(f.Mend)...)
	case i.chHeals:
		p.execClickHouse(t, statements(f.Mend)...)
	default:
		return
	}
	until(t, config, i.check, OK)
}
