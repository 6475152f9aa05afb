package doctor

import (
	"context"
	"net"
	"net/url"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/sluicebox/sluicebox/internal/replication"
	"github.com/sluicebox/sluicebox/internal/testdb"
)

func TestHealthy(t *testing.T) {
	t.Parallel()
	p := newPatient(t)
	// It may change nothing, and Postgres holds it to that.
	p.exec(t, `ALTER ROLE `+sqlRole+` SET default_transaction_read_only = on`)
	report := Run(t.Context(), p.config)
	justified := []string{"postgres.fsync"} // the servers of tests give durability up for speed
	for _, f := range report.Findings {
		if f.Result == Fail || f.Result == Warn && !slices.Contains(justified, f.Check) {
			t.Errorf("%s %s: %s", f.Result, f.Check, f.Seen)
		}
		if f.Seen == "" {
			t.Errorf("%s does not say what was seen", f.Check)
		}
	}
	skipped := []string{"outbox.retention_grant", "slot.safe_wal"} // what is not set
	if p.version(t) < 17 {
		skipped = append(skipped, "slot.failover")
	}
	for _, f := range report.Findings {
		if f.Result == Skip && !slices.Contains(skipped, f.Check) {
			t.Errorf("%s was skipped: %s", f.Check, f.Seen)
		}
	}
	if report.Result != Warn || !report.Reached() || report.Counts[OK] < 50 {
		t.Errorf("result %s, reached %v, %v", report.Result, report.Reached(), report.Counts)
	}
	if found := Preflight(t.Context(), p.pg, p.config.Replication); found != nil {
		t.Errorf("preflight: %+v", found)
	}
	var names []string
	for _, f := range report.Findings {
		names = append(names, f.Check)
	}
	if diff := cmp.Diff(Checks(), names); diff != "" {
		t.Errorf("-checks +findings: %s", diff)
	}
	if unique := slices.Compact(slices.Sorted(slices.Values(names))); len(unique) != len(names) {
		t.Error("two checks have one name")
	}
	t.Run("before a daemon has ever run, nothing fails", func(t *testing.T) {
		config := p.config
		config.Replication.Slot = "never_created"
		for _, f := range Run(t.Context(), config).Findings {
			if f.Result == Fail {
				t.Errorf("%s: %s", f.Check, f.Seen)
			}
		}
	})
	t.Run("a pooler in between is noticed", func(t *testing.T) {
		u, err := url.Parse(p.config.Postgres)
		if err != nil {
			t.Fatal(err)
		}
		u.Host = pool(t, u.Host)
		config := p.config
		config.Postgres = u.String()
		until(t, config, "postgres.pooler", Warn)
	})
	for _, side := range append(sides(), bothSides()) {
		for _, c := range side {
			for _, need := range c.needs {
				if !slices.Contains(names, need) {
					t.Errorf("%s needs %s, which there is not", c.name, need)
				}
			}
		}
	}
}

func TestDown(t *testing.T) {
	t.Parallel()
	down := Config{Host: Host{OpenFiles: 1024}, AdminAddr: "127.0.0.1:8081", BatchRows: 50_000, TargetTable: "event_log"}
	hangs := func(t *testing.T) string {
		t.Helper()
		var lc net.ListenConfig
		listener, err := lc.Listen(t.Context(), "tcp", "127.0.0.1:0") // connections are accepted by the kernel, and never answered
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = listener.Close() })
		return listener.Addr().String()
	}
	for name, address := range map[string]func(*testing.T) string{
		"refuses": func(*testing.T) string { return "127.0.0.1:1" }, "hangs": hangs,
	} {
		t.Run("a server that "+name+" is one finding, and skips what builds on it", func(t *testing.T) {
			t.Parallel()
			config := down
			config.Postgres, config.ClickHouse = "postgres://u:secret@"+address(t)+"/x?sslmode=disable", "clickhouse://u:secret@"+address(t)+"/x"
			config.Replication.URL = config.Postgres
			report := Run(t.Context(), config)
			var failed []string
			for _, f := range report.Findings {
				side, _, _ := strings.Cut(f.Check, ".")
				switch {
				case f.Result == Fail:
					failed = append(failed, f.Check)
				case f.Result != Skip && side != "settings" && side != "host":
					t.Errorf("%s is %s: %s", f.Check, f.Result, f.Seen)
				}
			}
			if diff := cmp.Diff([]string{postgresReachable, clickhouseReachable}, failed); diff != "" {
				t.Errorf("-want +failed: %s", diff)
			}
			if report.Result != Fail || report.Reached() {
				t.Errorf("result %s, reached %v", report.Result, report.Reached())
			}
		})
	}
}

// TestOutOfTime has a context that is done before anything was looked at.
func TestOutOfTime(t *testing.T) {
	t.Parallel()
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	for _, f := range Run(ctx, Config{}).Findings {
		if f.Result != Skip {
			t.Errorf("%s is %s: %s", f.Check, f.Result, f.Seen)
		}
	}
}

// TestUnwell holds down what an operator is shown, and what of it a daemon logs: what it does not say by itself.
func TestUnwell(t *testing.T) {
	t.Parallel()
	report := &Report{Findings: []Finding{
		{Check: "a", Result: Warn},
		{Check: "b", Result: Fail},
		{Check: "c", Result: OK},
		{Check: "d", Result: Skip},
		{Check: "e", Result: Fail, when: told},
		{Check: "f", Result: Fail, when: before},
	}}
	var names, logged []string
	for _, f := range report.Unwell() {
		names = append(names, f.Check)
		if !f.Told() {
			logged = append(logged, f.Check)
		}
	}
	if diff := cmp.Diff([][]string{{"b", "e", "f", "a"}, {"b", "a"}}, [][]string{names, logged}); diff != "" {
		t.Errorf("-want +got: %s", diff)
	}
}

func TestPreflight(t *testing.T) {
	t.Parallel()
	db := testdb.New(t) // not migrated
	stream := replication.Config{URL: db.PostgresURL, Slot: db.Slot(t), Publication: "sluicebox", Schema: "public", Table: "event_outbox"}
	p := &patient{pg: db.Postgres(t), config: Config{Replication: stream}}
	found := Preflight(t.Context(), p.pg, p.config.Replication)
	if found == nil || found.Check != LedgerSchema || found.Err == nil {
		t.Errorf("%+v, want the schema", found)
	}
	wrong := p.config.Replication
	u, err := url.Parse(wrong.URL)
	if err != nil {
		t.Fatal(err)
	}
	u.User = url.UserPassword("nobody", "x")
	wrong.URL = u.String()
	if found := Preflight(t.Context(), p.pg, wrong); found == nil || found.Check != "role.replication" || found.Err == nil {
		t.Errorf("%+v, want the replication role", found)
	}
}

func TestLocal(t *testing.T) {
	t.Parallel()
	for address, want := range map[string]bool{
		"127.0.0.1:5432": true, "[::1]:5432": true, "localhost:9000": true, "/var/run/postgresql/.s.PGSQL.5432": true, "@": true, "": true,
		"10.0.0.1:5432": false, "db.example.com:9000": false, "[fd00::1]:5432": false,
	} {
		if local(address) != want {
			t.Errorf("%q: %v, want %v", address, !want, want)
		}
	}
}

// TestNotLooked has checks that could not look, or break.
func TestNotLooked(t *testing.T) {
	t.Parallel()
	var found findings
	found.run(t.Context(), &look{}, []check{
		{name: "a", run: func(context.Context, *look) Finding { return unknown(context.DeadlineExceeded) }},
		{name: "b", needs: []string{"a"}, run: func(context.Context, *look) Finding { return ok("it was run without what it needs") }},
		{name: "c", run: func(context.Context, *look) Finding { panic("planted") }},
		{name: "d", run: func(context.Context, *look) Finding { return ok("fine") }},
	})
	var results []Result
	for _, f := range found {
		results = append(results, f.Result)
	}
	if diff := cmp.Diff([]Result{Warn, Skip, Warn, OK}, results); diff != "" {
		t.Errorf("-want +got: %s", diff)
	}
	if !strings.Contains(found[2].Seen, "planted") {
		t.Errorf("%+v", found[2])
	}
}
