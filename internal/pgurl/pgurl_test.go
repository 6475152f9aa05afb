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
