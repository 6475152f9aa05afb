package api_test

import (
	"bytes"
	"reflect"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
	"github.com/rs/zerolog"

	"github.com/sluicebox/sluicebox/internal/api"
	"github.com/sluicebox/sluicebox/internal/cli"
)

func parse(args []string, environ ...string) (s api.Settings, err error) {
	program := cli.Program{Name: "api", Prefix: "API_", Args: append([]string{}, args...), Environ: append([]string{"DATABASE_URL=postgres://h/db"}, environ...), Stdout: &bytes.Buffer{}}
	_, err = program.Parse(&s)
	return s, err
}

func TestSettings(t *testing.T) {
	t.Parallel()
	got, err := parse(nil)
	want := api.Settings{DatabaseURL: cli.NewCredential("postgres://h/db"), Addr: "127.0.0.1:8080", Environment: "development", Log: cli.Log{LogLevel: "info", LogFormat: "json"}}
	if diff := cmp.Diff(want, got, cmpopts.EquateComparable(cli.Credential{})); diff != "" || err != nil {
		t.Errorf("error %v; settings (-want +got):\n%s", err, diff)
	}
	limits, err := parse([]string{"--rate-limit=2.5", "--max-requests=9"}, "API_RATE_BURST=7")
	if c := limits.Config(zerolog.Nop()); err != nil || c.RateLimit != 2.5 || c.RateBurst != 7 || c.MaxRequests != 9 {
		t.Errorf("error %v, limits %+v", err, c)
	}
	for _, keys := range []string{"one,two", "one,sha256:" + strings.Repeat("0a", 32), "sha256:" + strings.Repeat("0A", 32)} {
		if _, err := parse(nil, "API_ADDR=0.0.0.0:80", "API_KEYS="+keys); err != nil {
			t.Errorf("%s: %v", keys, err)
		}
	}
}

func TestBadSettings(t *testing.T) {
	t.Parallel()
	for name, test := range map[string]struct {
		environ []string
		want    string
	}{
		"open to everybody":    {[]string{"API_ADDR=:80"}, "API_ADDR: not a loopback address, so that anybody could use the service; set API_KEYS"},
		"an empty key":         {[]string{"API_KEYS=one,,two"}, "API_KEYS: a key is empty, or has a character that a bearer token cannot have"},
		"a key with a space":   {[]string{"API_KEYS=one, two"}, "API_KEYS: a key is empty, or has a character that a bearer token cannot have"},
		"half a digest":        {[]string{"API_KEYS=sha256:" + strings.Repeat("0a", 16)}, "API_KEYS: what begins with sha256: is the digest of a key, and has to go on with 64 hexadecimal digits"},
		"more than a digest":   {[]string{"API_KEYS=sha256:" + strings.Repeat("0a", 33)}, "API_KEYS: what begins with sha256: is the digest of a key, and has to go on with 64 hexadecimal digits"},
		"a digest of nonsense": {[]string{"API_KEYS=sha256:" + strings.Repeat("xy", 32)}, "API_KEYS: what begins with sha256: is the digest of a key, and has to go on with 64 hexadecimal digits"},
		"a burst of nothing":   {[]string{"API_RATE_BURST=5"}, "API_RATE_BURST: means nothing without API_RATE_LIMIT; set that too"},
		"a rate below zero":    {[]string{"API_RATE_LIMIT=-1"}, "API_RATE_LIMIT: -1 is out of range, 0 to 1000000"},
		"a rate that is none":  {[]string{"API_RATE_LIMIT=NaN"}, "API_RATE_LIMIT: NaN is out of range, 0 to 1000000"},
		"a rate without end":   {[]string{"API_RATE_LIMIT=Inf"}, "API_RATE_LIMIT: +Inf is out of range, 0 to 1000000"},
		"a blank environment":  {[]string{"ENVIRONMENT= "}, "ENVIRONMENT: must not be blank"},
		"an authority that is not there": {
			[]string{"DATABASE_URL=postgres://u:canary@h/db?sslmode=verify-full&sslrootcert=/nowhere/ca.pem"},
			"DATABASE_URL: open /nowhere/ca.pem: no such file or directory; correct sslrootcert, sslcert or sslkey in it, or the rights of that file",
		},
		"a certificate without its key": {
			[]string{"DATABASE_URL=postgres://u:canary@h/db?sslmode=verify-full&sslcert=/nowhere/client.pem"},
			`DATABASE_URL: both "sslcert" and "sslkey" are required; correct sslmode, sslrootcert, sslcert or sslkey in it`,
		},
		"a database of nonsense": {[]string{"DATABASE_URL=mysql//canary"}, "DATABASE_URL: not a Postgres URL such as postgres://user:password@host:5432/database"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			if _, err := parse(nil, test.environ...); err == nil || !strings.HasSuffix(err.Error(), "1 setting is wrong\n  "+test.want) {
				t.Errorf("error %v, want %s", err, test.want)
			}
		})
	}
}

func TestFlagsAreNamedLikeTheirVariables(t *testing.T) {
	t.Parallel()
	for _, structure := range []reflect.Type{reflect.TypeFor[api.Settings](), reflect.TypeFor[cli.Log]()} {
		for field := range structure.Fields() {
			env := field.Tag.Get("env")
			if env == "" {
				continue
			}
			flag := "--" + strings.ToLower(strings.ReplaceAll(strings.TrimPrefix(env, "API_"), "_", "-"))
			if _, err := parse([]string{flag + "=nonsense"}); err != nil && strings.Contains(err.Error(), "unknown flag") {
				t.Errorf("%s: %v", env, err)
			}
		}
	}
}
