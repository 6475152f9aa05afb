package cli_test

import (
	"bytes"
	"encoding/json"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/sluicebox/sluicebox/internal/cli"
)

func TestBytes(t *testing.T) {
	t.Parallel()
	for text, want := range map[string]struct {
		size uint64
		text string
	}{
		"16MiB":   {16 << 20, "16MiB"},
		"16 MiB":  {16 << 20, "16MiB"},
		"1.5KiB":  {1536, "1536"},
		"64kb":    {64000, "64000"},
		"1000000": {1000000, "1000000"},
		"2048":    {2048, "2KiB"},
		"1TiB":    {1 << 40, "1TiB"},
		"0":       {0, "0"},
	} {
		var b cli.Bytes
		if err := b.UnmarshalText([]byte(text)); err != nil || uint64(b) != want.size || b.String() != want.text {
			t.Errorf("%q is %d, written %q, error %v; want %d, %q", text, uint64(b), b, err, want.size, want.text)
		}
	}
	for _, text := range []string{"", "x", "-1", "12 parsecs", "99999999999999999999", "20EiB"} {
		if err := new(cli.Bytes).UnmarshalText([]byte(text)); err == nil {
			t.Errorf("%q passed as a size", text)
		}
	}
}

// TestNumbersAreDecimal has numbers that libraries read as something else.
func TestNumbersAreDecimal(t *testing.T) {
	t.Parallel()
	const url = "DATABASE_URL=postgres://h/db"
	if s, _, err := parse(t, []string{"run"}, []string{url, "CDC_MAX_ROWS=010000"}); err == nil && s.MaxRows != 10000 {
		t.Errorf("010000 is %d", s.MaxRows)
	}
	for _, env := range []string{"CDC_MAX_ROWS=5_0", "CDC_MAX_ROWS=0x10", "CDC_MAX_BYTES=1,5MiB", "CDC_MAX_BYTES=1.234,5MiB"} {
		if s, _, err := parse(t, []string{"run"}, []string{url, env}); err == nil {
			t.Errorf("%s is taken: %d rows, %d bytes", env, s.MaxRows, s.MaxBytes)
		}
	}
}

func TestAddr(t *testing.T) {
	t.Parallel()
	for text, loopback := range map[string]bool{
		"127.0.0.1:8080": true, "127.9.9.9:1": true, "[::1]:0": true, "localhost:80": true, "[::ffff:127.0.0.1]:80": true,
		":8080": false, "0.0.0.0:8080": false, "[::]:80": false, "10.0.0.1:80": false, "example.com:80": false,
		"localhost.example.com:80": false,
	} {
		var a cli.Addr
		if err := a.UnmarshalText([]byte(text)); err != nil || a.Loopback() != loopback {
			t.Errorf("%q: loopback %v, error %v", text, a.Loopback(), err)
		}
	}
	for _, text := range []string{"", "8080", "localhost", "127.0.0.1:", "127.0.0.1:65536", "::1:80", "127.0.0.1:http"} {
		if err := new(cli.Addr).UnmarshalText([]byte(text)); err == nil {
			t.Errorf("%q passed as an address", text)
		}
	}
}

func TestSecretIsNotPrinted(t *testing.T) {
	t.Parallel()
	secret := cli.Secret("canary")
	encoded, err := json.Marshal(map[string]any{"one": secret, "list": []cli.Secret{secret}})
	if err != nil {
		t.Fatal(err)
	}
	var log bytes.Buffer
	logger := cli.Log{LogLevel: "info"}.Logger(&log)
	logger.Info().Stringer("a", secret).Interface("b", secret).Any("c", []cli.Secret{secret}).Msg("secret")
	all := fmt.Sprintf("%s %v %+v %#v %q %s", secret, secret, struct{ S cli.Secret }{secret}, secret, secret, encoded) + log.String()
	if strings.Contains(all, "canary") {
		t.Errorf("a secret is printed: %s", all)
	}
}

func TestLogger(t *testing.T) {
	t.Parallel()
	t.Run("json has a UTC time in milliseconds", func(t *testing.T) {
		t.Parallel()
		var out bytes.Buffer
		logger := cli.Log{LogLevel: "warn", LogFormat: "json"}.Logger(&out)
		logger.Info().Msg("too little to log")
		logger.Warn().Int("rows", 3).Msg("written")
		var line struct {
			Level, Message, Time string
			Rows                 int
		}
		if err := json.Unmarshal(out.Bytes(), &line); err != nil {
			t.Fatalf("%v in %q", err, out.String())
		}
		at, err := time.Parse("2006-01-02T15:04:05.000Z", line.Time)
		if err != nil || time.Since(at) > time.Minute || line.Message != "written" || line.Level != "warn" || line.Rows != 3 {
			t.Errorf("line %q, error %v", out.String(), err)
		}
	})
	t.Run("console has no colours outside a terminal", func(t *testing.T) {
		t.Parallel()
		var out bytes.Buffer
		logger := cli.Log{LogLevel: "info", LogFormat: "console"}.Logger(&out)
		logger.Info().Int("rows", 3).Msg("written")
		if line := out.String(); strings.Contains(line, "\x1b") || !strings.Contains(line, "written rows=3") || strings.Contains(line, "T") {
			t.Errorf("line %q", line)
		}
	})
}
