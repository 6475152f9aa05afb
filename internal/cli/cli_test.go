package cli_test

import (
	"bytes"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/alecthomas/kong"
	"github.com/google/go-cmp/cmp"

	"github.com/sluicebox/sluicebox/internal/cli"
)

type settings struct {
	DatabaseURL   cli.Secret    `env:"DATABASE_URL" required:"" help:"Postgres."`
	ClickHouseURL cli.Secret    `name:"clickhouse-url" env:"CLICKHOUSE_URL" help:"ClickHouse."`
	Keys          []cli.Secret  `env:"CDC_KEYS" help:"Keys."`
	Slot          string        `env:"CDC_SLOT" default:"sluicebox" help:"Replication slot."`
	MaxRows       int           `env:"CDC_MAX_ROWS" default:"50000" min:"1" max:"1000000" help:"Rows of a batch."`
	MaxBytes      cli.Bytes     `env:"CDC_MAX_BYTES" default:"16MiB" min:"64KiB" help:"Size of a batch."`
	MaxDelay      time.Duration `env:"CDC_MAX_DELAY" default:"1s" max:"1m" help:"Age of a batch."`
	AdminAddr     cli.Addr      `env:"CDC_ADMIN_ADDR" default:"127.0.0.1:8081" help:"Metrics and health."`
	cli.Log

	Run    struct{} `cmd:"" help:"Deliver events."`
	Status struct {
		Wide bool `env:"CDC_WIDE" help:"All columns."`
	} `cmd:"" help:"Show the stream."`
}

func (s *settings) Validate() error {
	var problems []error
	if s.Slot == "Bad-Slot" {
		problems = append(problems, errors.New("CDC_SLOT: a slot has lower-case letters only"))
	}
	if !s.AdminAddr.Loopback() && len(s.Keys) == 0 {
		problems = append(problems, errors.New("CDC_ADMIN_ADDR: needs keys when it is not a loopback address"))
	}
	return errors.Join(problems...)
}

func parse(t *testing.T, args, environ []string) (settings, string, error) {
	t.Helper()
	s, _, out, err := parseContext(t, args, environ)
	return s, out, err
}

func parseContext(t *testing.T, args, environ []string) (settings, *kong.Context, string, error) {
	t.Helper()
	var s settings
	var out bytes.Buffer
	if environ == nil {
		environ = []string{}
	}
	ctx, err := cli.Program{
		Name: "cdc", About: "Carries events.", Prefix: "CDC_", Args: args, Environ: environ, Stdout: &out,
	}.Parse(&s)
	return s, ctx, out.String(), err
}

func secretFile(t *testing.T, content string) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "secret")
	if err := os.WriteFile(path, []byte(content), 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

func TestSettings(t *testing.T) {
	t.Parallel()
	const url = "postgres://u:p@h/db"
	defaults := settings{
		DatabaseURL: url, Slot: "sluicebox", MaxRows: 50000, MaxBytes: 16 << 20, MaxDelay: time.Second,
		AdminAddr: "127.0.0.1:8081", Log: cli.Log{LogLevel: "info", LogFormat: "json"},
	}
	for name, test := range map[string]struct {
		args, environ []string
		change        func(*settings)
	}{
		"defaults hold where nothing is set": {},
		"the environment wins over the default": {
			environ: []string{"CDC_SLOT=a", "CDC_MAX_ROWS=7", "CDC_MAX_BYTES=1MiB", "CDC_MAX_DELAY=20ms", "LOG_LEVEL=debug"},
			change: func(s *settings) {
				s.Slot, s.MaxRows, s.MaxBytes, s.MaxDelay, s.LogLevel = "a", 7, 1<<20, 20*time.Millisecond, "debug"
			},
		},
		"the command line wins over the environment": {
			args: []string{"--slot=b", "--max-rows", "8"}, environ: []string{"CDC_SLOT=a", "CDC_MAX_ROWS=7"},
			change: func(s *settings) { s.Slot, s.MaxRows = "b", 8 },
		},
		"the command line may say the default again": {
			args: []string{"--slot=sluicebox"}, environ: []string{"CDC_SLOT=a"},
		},
		"an empty variable counts as not set": {environ: []string{"CDC_SLOT=", "CDC_MAX_ROWS=", "CDC_NONSENSE="}},
		"a list is split at commas": {
			environ: []string{"CDC_KEYS=one,two"},
			change:  func(s *settings) { s.Keys = []cli.Secret{"one", "two"} },
		},
		"a secret comes from a file, without its line end": {
			environ: []string{"CLICKHOUSE_URL_FILE=" + secretFile(t, "clickhouse://u:p@h\r\n")},
			change:  func(s *settings) { s.ClickHouseURL = "clickhouse://u:p@h" },
		},
		"variables of the other program are none of its business": {environ: []string{"API_ADDR=x", "API_NONSENSE=1"}},
		"the service links of Kubernetes are not settings": {environ: []string{
			"CDC_SERVICE_HOST=10.0.0.1", "CDC_SERVICE_PORT=80", "CDC_SERVICE_PORT_HTTP=80", "CDC_PORT=tcp://10.0.0.1:80",
			"CDC_PORT_80_TCP=tcp://10.0.0.1:80", "CDC_PORT_80_TCP_ADDR=10.0.0.1", "CDC_ADMIN_PORT_80_TCP_PROTO=tcp",
		}},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			want := defaults
			if test.change != nil {
				test.change(&want)
			}
			args := append([]string{"run"}, test.args...)
			got, _, err := parse(t, args, append([]string{"DATABASE_URL=" + url}, test.environ...))
			if err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(want, got); diff != "" {
				t.Errorf("settings (-want +got):\n%s", diff)
			}
		})
	}
}

func TestSettingsOfAnotherCommand(t *testing.T) {
	t.Parallel()
	s, ctx, _, err := parseContext(t, []string{"status"}, []string{"DATABASE_URL=x", "CDC_WIDE=true"})
	if err != nil || !s.Status.Wide || ctx.Command() != "status" {
		t.Errorf("wide %v, command %v, error %v", s.Status.Wide, ctx, err)
	}
	if _, _, err = parse(t, []string{"run"}, []string{"DATABASE_URL=x", "CDC_WIDE=perhaps"}); err == nil {
		t.Error("a bad value of another command's setting passed")
	}
}

func TestProblems(t *testing.T) {
	t.Parallel()
	missing := filepath.Join(t.TempDir(), "missing")
	for name, test := range map[string]struct {
		args, environ, want []string
	}{
		"every problem is listed at once": {
			environ: []string{
				"CDC_SLTO=a", "CDC_MAX_ROWS=many", "CDC_MAX_BYTES=1", "CDC_MAX_DELAY=2m", "CDC_ADMIN_ADDR=0.0.0.0:1", "LOG_LEVEL=loud",
				"CLICKHOUSE_URL_FILE=" + missing,
			},
			want: []string{
				"CDC_SLTO: unknown setting, did you mean CDC_SLOT?",
				"CLICKHOUSE_URL: read the file that CLICKHOUSE_URL_FILE names: stat " + missing + ": no such file or directory",
				`CDC_MAX_ROWS: expected a valid 64 bit int but got "many"`,
				"CDC_MAX_BYTES: 1 is out of range, at least 64KiB",
				"CDC_MAX_DELAY: 2m0s is out of range, at most 1m",
				`LOG_LEVEL: "loud" is not one of debug, info, warn, error`,
				"DATABASE_URL: required; set it, or DATABASE_URL_FILE to the path of a file that holds it, or pass --database-url",
				"CDC_ADMIN_ADDR: needs keys when it is not a loopback address",
			},
		},
		"joined errors of Validate are one problem each": {
			environ: []string{"DATABASE_URL=x", "CDC_SLOT=Bad-Slot", "CDC_ADMIN_ADDR=:1"},
			want: []string{
				"CDC_SLOT: a slot has lower-case letters only", "CDC_ADMIN_ADDR: needs keys when it is not a loopback address",
			},
		},
		"a name like no other has no suggestion": {
			environ: []string{"DATABASE_URL=x", "CDC_QQQQQQQQQQ=1"}, want: []string{"CDC_QQQQQQQQQQ: unknown setting"},
		},
		"a secret and its file exclude each other": {
			environ: []string{"DATABASE_URL=x", "DATABASE_URL_FILE=/y"},
			want:    []string{"DATABASE_URL: set together with DATABASE_URL_FILE; keep one of them"},
		},
		"a plain setting has no file": {
			environ: []string{"DATABASE_URL=x", "CDC_SLOT_FILE=/y"},
			want:    []string{"CDC_SLOT_FILE: unknown setting, did you mean CDC_SLOT?"},
		},
		"a misspelt flag": {
			args: []string{"--slt=a"}, environ: []string{"DATABASE_URL=x"},
			want: []string{`unknown flag --slt, did you mean "--slot"?`},
		},
		"a flag out of range": {
			args: []string{"--max-rows=0", "--log-format=xml"}, environ: []string{"DATABASE_URL=x"},
			want: []string{"--max-rows: 0 is out of range, 1 to 1000000", `--log-format: "xml" is not one of json, console`},
		},
		"a secret in the wrong place is hidden": {
			args: []string{"postgres://u:canary@h/db"}, environ: []string{"DATABASE_URL=x"},
			want: []string{"unexpected argument postgres://[hidden]h/db"},
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			_, _, err := parse(t, append([]string{"run"}, test.args...), test.environ)
			exit := new(cli.Exit)
			if !errors.As(err, &exit) || exit.Code != cli.CodeSettings {
				t.Fatalf("error %v, want exit code 2", err)
			}
			if want := `"cdc run --help" lists every setting`; exit.Hint != want {
				t.Errorf("hint %s, want %s", exit.Hint, want)
			}
			lines := strings.Split(err.Error(), "\n  ")
			if diff := cmp.Diff(test.want, lines[1:]); diff != "" {
				t.Errorf("problems (-want +got):\n%s", diff)
			}
		})
	}
}

func TestSecretsStayHidden(t *testing.T) {
	t.Parallel()
	environ := []string{
		"DATABASE_URL=postgres://u:canary@h/db", "DATABASE_URL_FILE=/nowhere", "CLICKHOUSE_URL=canary", "CDC_KEYS=canary",
		"CDC_MAX_ROWS=x",
	}
	_, out, err := parse(t, []string{"run", "--clickhouse-url=canary", "--nonsense=canary"}, environ)
	if err == nil || strings.Contains(err.Error()+out, "canary") {
		t.Errorf("a secret is in the error:\n%v\n%s", err, out)
	}
	_, out, err = parse(t, []string{"--help"}, environ)
	if err == nil || strings.Contains(err.Error()+out, "canary") {
		t.Errorf("a secret is in help:\n%v\n%s", err, out)
	}
}

func TestHelpTeaches(t *testing.T) {
	t.Parallel()
	_, out, err := parse(t, []string{"run", "--help"}, []string{"CDC_MAX_ROWS=nonsense"})
	if code := cli.Report(os.Stderr, "cdc", err); code != cli.CodeClean {
		t.Fatalf("exit code %d: %v", code, err)
	}
	flat := strings.Join(strings.Fields(out), " ")
	for _, want := range []string{
		"--database-url=SECRET", "[required; DATABASE_URL or DATABASE_URL_FILE]",
		"--max-rows=N", "[1 to 1000000; default 50000; CDC_MAX_ROWS]", "--max-bytes=SIZE", "[at least 64KiB; default 16MiB; CDC_MAX_BYTES]",
		"--max-delay=DURATION", "--log-level=WORD", "[one of debug, info, warn, error; default info; LOG_LEVEL]",
	} {
		if !strings.Contains(flat, want) {
			t.Errorf("help lacks %q:\n%s", want, out)
		}
	}
}

func TestVersion(t *testing.T) {
	t.Parallel()
	_, out, err := parse(t, []string{"--version"}, nil)
	if code := cli.Report(os.Stderr, "cdc", err); code != cli.CodeClean || !strings.HasPrefix(out, "cdc ") || !strings.Contains(out, "revision ") {
		t.Errorf("exit code %d, output %q", code, out)
	}
}
