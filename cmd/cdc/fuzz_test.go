package main

import (
	"errors"
	"io"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/sluicebox/sluicebox/internal/cli"
)

// FuzzArguments holds that operators' arguments are taken as what they say, or refused with code 2, and that no message tells a password.
func FuzzArguments(f *testing.F) {
	f.Add("2026-11-24", "2026-11-24T10:00:00+02:00", "4711", "host:9000/default", "5m")
	f.Add("24h", "1h", "-h", "@h\"", "0s")
	f.Add("24h", "1h", "0100", "h", "0s")
	f.Add("24h", "1h", "7,8", "h", "0s")
	f.Add("24h", "1h", "-1", "@h\"", "0s")
	f.Add("0001-01-01", "", "9223372036854775808", "%zz", "1e9h")
	f.Add("-24h", "0001-01-01T00:00:00+23:59", "--all", "h?dial_timeout=x", "")
	f.Add("10000-01-01", "2026-02-30", "0x10", "h1,h2/db?compress=zstd&x", "24h")
	f.Fuzz(func(t *testing.T, since, until, id, address, wait string) {
		const password = "planted-secret"
		environ := []string{
			"DATABASE_URL=postgres://u:" + password + "@localhost/db", "CLICKHOUSE_URL=clickhouse://u:" + password + "@" + address,
		}
		for _, args := range [][]string{
			{"audit", "--since=" + since, "--until=" + until, "--wait=" + wait},
			{"run", "--insert-deadline=" + wait},
			{"quarantine", "show", id},
			{"quarantine", "retry", id},
			{"quarantine", "drop", id},
			{"status"},
			{"migrate"},
		} {
			var g grammar
			_, err := cli.Program{Name: "cdc", Prefix: "CDC_", Args: args, Environ: environ, Stdout: io.Discard}.Parse(&g)
			if err != nil {
				var exit *cli.Exit
				if errors.As(err, &exit) && exit.Code == cli.CodeClean && strings.HasPrefix(id, "-") {
					continue // help, or the version
				}
				if !errors.As(err, &exit) || exit.Code != cli.CodeSettings || strings.Contains(err.Error()+exit.Hint, password) {
					t.Errorf("%q: error is %v", args, err)
				}
				continue
			}
			if ids := g.Quarantine.Show.IDs; len(ids) > 0 {
				first, _, _ := strings.Cut(id, ",") // several may be given as one
				if want, err := strconv.ParseInt(first, 10, 64); err != nil || ids[0] != want {
					t.Errorf("%q: shows %d", args, ids)
				}
			}
			if args[0] == "audit" {
				a := g.Audit
				if a.Wait < time.Second || a.Wait > 24*time.Hour || since != "" && a.Since.IsZero() || until != "" && a.Until.IsZero() ||
					!a.Since.IsZero() && !a.Until.IsZero() && !a.Since.Before(a.Until.Time) {
					t.Errorf("%q: accepted from %s to %s, wait %s", args, a.Since, a.Until, a.Wait)
				}
			}
		}
	})
}
