package pgurl_test

import (
	"testing"

	"github.com/jackc/pgx/v5/pgconn"

	"github.com/sluicebox/sluicebox/internal/pgurl"
)

func TestRenew(t *testing.T) {
	t.Parallel()
	const before = "postgres://old:one@h1,h2:5433/db?sslmode=verify-full"
	for name, test := range map[string]struct{ url, user, password string }{
		"user and password are taken up":           {"postgres://new:two@h1,h2:5433/db?sslmode=verify-full", "new", "two"},
		"not those for another server":             {"postgres://new:two@h1,h3:5433/db?sslmode=verify-full", "old", "one"},
		"not those for another port":               {"postgres://new:two@h1,h2:5432/db?sslmode=verify-full", "old", "one"},
		"not those for another database":           {"postgres://new:two@h1,h2:5433/other?sslmode=verify-full", "old", "one"},
		"not to be sent without TLS all at once":   {"postgres://new:two@h1,h2:5433/db?sslmode=disable", "old", "one"},
		"a file that is half written does nothing": {"postgres://new:two@h1,h2:54", "old", "one"},
		"a file of nonsense does nothing":          {"://", "old", "one"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			config, err := pgconn.ParseConfig(before)
			if err != nil {
				t.Fatal(err)
			}
			pgurl.Renew(config, test.url)
			if config.User != test.user || config.Password != test.password {
				t.Errorf("%s, %s", config.User, config.Password)
			}
		})
	}
}

func TestPlain(t *testing.T) {
	t.Parallel()
	for url, want := range map[string]string{
		"postgres://db.example.com/db":                                 "db.example.com", // by default TLS is given up when the server has none
		"postgres://db.example.com/db?sslmode=disable":                 "db.example.com",
		"postgres://db.example.com/db?sslmode=require":                 "",
		"postgres://127.0.0.1,10.1.2.3/db?sslmode=disable":             "10.1.2.3",
		"postgres://localhost/db?sslmode=disable":                      "",
		"postgres://[::1]/db?sslmode=disable":                          "",
		"postgres:///db?host=/run/postgresql&user=sluicebox":           "",
		"host=10.1.2.3 dbname=db sslmode=prefer":                       "10.1.2.3",
		"postgres://db.example.com/db?sslmode=verify-full&user=daemon": "",
	} {
		if got := pgurl.Plain(url); got != want {
			t.Errorf("%s: %q, want %q", url, got, want)
		}
	}
}
