package main

import (
	"net/http"
	"net/url"
	"strings"
	"testing"

	"github.com/sluicebox/sluicebox/internal/embedded"
	"github.com/sluicebox/sluicebox/internal/testdb"
	"github.com/sluicebox/sluicebox/internal/testotlp"
)

// canary is a part of every secret and of every event of TestNothingIsToldThatIsNobodysBusiness.
const canary = "canary"

// silent fails if a canary is in what somebody may read.
func silent(t *testing.T, where, text string) {
	t.Helper()
	if at := strings.Index(text, canary); at >= 0 {
		t.Errorf("%s tells of a canary:\n%s", where, text[max(0, at-300):min(len(text), at+100)])
	}
}

// TestNothingIsToldThatIsNobodysBusiness runs both programs through success and failure, with secrets and events that are canaries, and then
// reads all that they have said.
func TestNothingIsToldThatIsNobodysBusiness(t *testing.T) {
	t.Parallel()
	options := embedded.ClickHouseOptions{Dir: t.TempDir(), Password: canary + "-clickhouse"}
	server := startClickHouse(t, options)
	db := testdb.New(t).OnClickHouse(t, server)
	db.Warehouse = db.ClickHouseURL // the one user that this server has
	l := migratedLineOn(t, db)
	as := func(kind string) string {
		password := canary + "-" + kind
		role := l.role(t, kind, password)
		return with(t, l.db.PostgresURL, func(u *url.URL) { u.User = url.UserPassword(role, password) }, nil)
	}
	sql, replication, service := as("sql"), as("repl"), as("api")
	wrong := func(address string) string {
		return with(t, address, func(u *url.URL) { u.User = url.UserPassword(u.User.Username(), canary+"-wrong") }, nil)
	}
	collector := testotlp.Start(t)
	loud := []string{"LOG_LEVEL=debug", "OTEL_EXPORTER_OTLP_ENDPOINT=" + collector.URL, "OTEL_EXPORTER_OTLP_HEADERS=authorization=" + canary}
	secrets := append([]string{"DATABASE_URL=" + sql, "REPLICATION_DATABASE_URL=" + replication}, loud...)

	l.execClickHouse(t, `ALTER TABLE event_log ADD CONSTRAINT refusing CHECK event_type != 'refused' OR event_context = ''`)
	d := l.start(t, secrets...)
	api := l.startAPI(t, append([]string{"DATABASE_URL=" + service, "API_KEYS=" + canary + "-key"}, loud...)...)
	post := func(key, body string) int {
		request, err := http.NewRequestWithContext(t.Context(), http.MethodPost, api.url+"/users", strings.NewReader(body))
		if err != nil {
			t.Fatal(err)
		}
		request.Header.Set("Content-Type", "application/json")
		request.Header.Set("Authorization", "Bearer "+key)
		request.Header.Set("Idempotency-Key", canary+"-idempotency")
		answer, err := http.DefaultClient.Do(request)
		if err != nil {
			t.Fatal(err)
		}
		_ = answer.Body.Close()
		return answer.StatusCode
	}
	user := `{"email": "` + canary + `@example.com", "first_name": "` + canary + `", "last_name": "` + canary + `"}`
	for _, request := range []struct {
		key, body string
		want      int
	}{
		{canary + "-key", user, http.StatusCreated},
		{canary + "-other", user, http.StatusUnauthorized},
		{canary + "-key", `{"email": "` + canary + `", "first_name": 7}`, http.StatusUnprocessableEntity},
	} {
		if got := post(request.key, request.body); got != request.want {
			t.Errorf("POST /users with %s: %d, want %d", request.body, got, request.want)
		}
	}
	insert := `INSERT INTO event_outbox (event_type, event_date_time, environment, event_context)
SELECT $1, $2::text::timestamptz, 'test', jsonb_build_object('email', '` + canary + `''@example.com', '` + canary + `', 1)`
	l.exec(t, insert, "taken", "now")
	l.exec(t, insert, "refused", "now")       // by ClickHouse, which repeats the row
	l.exec(t, insert, "not held", "infinity") // by the daemon
	eventually(t, func() string {
		if n := l.count(t, `SELECT count(*) FROM sluicebox.quarantine`); n != 2 {
			return "quarantine does not have both events"
		}
		if n := l.count(t, `SELECT count(*) FROM event_outbox WHERE processed`); n != 2 {
			return "the others are not delivered"
		}
		return ""
	})
	for _, page := range []string{"/", "/metrics", "/readyz", "/livez"} {
		_, text := d.get(t, page)
		silent(t, "the daemon's "+page, text)
	}
	for _, page := range []string{"/metrics", "/readyz", "/docs"} {
		_, text := api.get(t, page)
		silent(t, "the API's "+page, text)
	}
	l.rotate(t, strings.Replace(l.slot, "slot", "sql", 1), canary+"-rotated") // under both programs' feet
	d.wait(t, "28P01")
	for _, page := range []string{"/", "/readyz"} {
		_, text := d.get(t, page)
		silent(t, "the waiting daemon's "+page, text)
	}

	whole := append([]string{"CLICKHOUSE_URL=" + l.db.ClickHouseURL, "CDC_SLOT=" + l.slot, "CDC_ADMIN_ADDR=127.0.0.1:0"}, secrets...)
	for name, attempt := range map[string]struct {
		settings []string
		args     string
		code     int
	}{
		"a wrong password of Postgres":    {[]string{"DATABASE_URL=" + wrong(replication)}, "run", 3},
		"a wrong replication password":    {[]string{"DATABASE_URL=" + replication, "REPLICATION_DATABASE_URL=" + wrong(replication)}, "run", 3},
		"a wrong password of ClickHouse":  {[]string{"DATABASE_URL=" + replication, "CLICKHOUSE_URL=" + wrong(l.db.ClickHouseURL)}, "run", 3},
		"doctor with wrong passwords":     {[]string{"DATABASE_URL=" + wrong(sql), "CLICKHOUSE_URL=" + wrong(l.db.ClickHouseURL)}, "doctor", 3},
		"migrate with a wrong password":   {[]string{"DATABASE_URL=" + wrong(sql)}, "migrate", 3},
		"status":                          {[]string{"DATABASE_URL=" + replication}, "status", 0},
		"quarantine list":                 {[]string{"DATABASE_URL=" + replication}, "quarantine list", 0},
		"help":                            {nil, "run --help", 0},
		"malformed URLs":                  {[]string{"DATABASE_URL=postgres://u:" + canary + "@h:port/d", "CLICKHOUSE_URL=clickhouse://u:" + canary + "#@h:9000/%zz"}, "run", 2},
		"URLs with a slash in a password": {[]string{"DATABASE_URL=postgres://u:" + canary + "/x@h/d?sslmode=no", "CLICKHOUSE_URL=http://u:" + canary + "/x@h?secure=perhaps"}, "run", 2},
		"a secret in the wrong place":     {[]string{"CDC_SLOT=postgres://u:" + canary + "@h"}, "run --nonsense=postgres://u:" + canary + "@h", 2},
		"certificates that are not there": {[]string{"DATABASE_URL=" + with(t, sql, nil, map[string]string{"sslmode": "verify-full", "sslrootcert": "/nowhere"})}, "run", 2},
	} {
		command := startCDC(t, append(whole, attempt.settings...), strings.Fields(attempt.args)...)
		if code := command.end(t); code != attempt.code {
			t.Errorf("%s: exit code %d, want %d", name, code, attempt.code)
		}
		silent(t, "cdc "+attempt.args+" ("+name+")", command.text())
	}
	for _, program := range []*daemon{d, api} {
		program.stop(t)
	}
	silent(t, "the daemon's log", d.text())
	silent(t, "the API's log", api.text())
	silent(t, "what the collector of traces got", collector.Everything())
	if len(collector.Spans("POST /users")) == 0 || len(collector.Spans("deliver batch")) == 0 {
		t.Error("there are no traces; the test proves too little")
	}
}
