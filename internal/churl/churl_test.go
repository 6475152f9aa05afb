package churl_test

import (
	"strings"
	"testing"

	"github.com/sluicebox/sluicebox/internal/churl"
)

func TestParse(t *testing.T) {
	t.Parallel()
	t.Run("TLS verifies unless it is told not to", func(t *testing.T) {
		t.Parallel()
		for url, want := range map[string]bool{
			"clickhouse://u:p@h:9440/db?secure=true":                  true,
			"https://u:p@h:8443/db":                                   true,
			"https://u:p@h:8443/db?max_threads=2":                     true,
			"https://u:p@h:8443/db?secure=true":                       true,
			"clickhouse://u:p@h:9440/db?secure=true&skip_verify=true": false,
		} {
			options, err := churl.Parse(url)
			if err != nil || options.TLS == nil || options.TLS.InsecureSkipVerify == want {
				t.Errorf("%s: %+v, %v", url, options, err)
			}
		}
	})
	t.Run("without it there is none", func(t *testing.T) {
		t.Parallel()
		for _, url := range []string{"clickhouse://u:p@h:9000/db", "http://u:p@h:8123/db?max_threads=2"} {
			if options, err := churl.Parse(url); err != nil || options.TLS != nil {
				t.Errorf("%s: %+v, %v", url, options, err)
			}
		}
	})
	t.Run("what is wrong is told, and nothing else of the URL", func(t *testing.T) {
		t.Parallel()
		for url, want := range map[string]string{
			"clickhouse://u:canary@h/db?sslrootcert=/nowhere/ca.pem":             "need secure=true",
			"clickhouse://u:canary@h/db?secure=true&sslrootcert=/nowhere/ca.pem": "sslrootcert: open /nowhere/ca.pem: no such file or directory",
			"clickhouse://u:canary@h/db?secure=true&sslrootcert=/dev/null":       "/dev/null holds no certificate in PEM",
			"clickhouse://u:canary@h/db?secure=true&sslcert=/nowhere/c.pem":      "sslcert and sslkey need each other",
			"https://u:canary@h/db?sslcert=/nowhere/c.pem&sslkey=/nowhere/c.key": "sslcert and sslkey: open /nowhere/c.pem",
			"clickhouse://u:canary@h/db?secure=perhaps":                          "not a ClickHouse URL",
			"https://u:canary@h/db?secure=false":                                 "not a ClickHouse URL",
			"http://u:canary@h/db?secure=true":                                   "not a ClickHouse URL",
			"://canary":                                                          "not a ClickHouse URL",
		} {
			if _, err := churl.Parse(url); err == nil || !strings.Contains(err.Error(), want) || strings.Contains(err.Error(), "canary") {
				t.Errorf("%s: %v, want %s", url, err, want)
			}
		}
	})
}
