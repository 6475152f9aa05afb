package api

import (
	"errors"
	"strings"

	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/rs/zerolog"

	"github.com/sluicebox/sluicebox/internal/cli"
)

// Settings is the command line of the service.
type Settings struct {
	DatabaseURL cli.Secret   `env:"DATABASE_URL" required:"" help:"Postgres, as a URL; its host may be the folder of a Unix socket. pool_max_conns and connect_timeout (seconds) may be among its parameters."`
	Addr        cli.Addr     `env:"API_ADDR" default:"127.0.0.1:8080" help:"Address to serve HTTP on."`
	Keys        []cli.Secret `env:"API_KEYS" help:"Bearer keys that may use the service, separated by commas. Without any it is open to everybody, which is allowed on a loopback address only."`
	Environment string       `env:"ENVIRONMENT" default:"development" help:"Deployment, written into each event."`
	cli.Log
}

// Validate checks what the types of the settings cannot.
func (s *Settings) Validate() error {
	var problems []error
	if _, err := pgxpool.ParseConfig(string(s.DatabaseURL)); err != nil {
		// Not its text, which repeats parts of the URL.
		problems = append(problems, errors.New("DATABASE_URL: not a Postgres URL such as postgres://user:password@host:5432/database"))
	}
	for _, key := range s.Keys {
		if !isToken(string(key)) {
			problems = append(problems, errors.New("API_KEYS: a key is empty, or has a character that a bearer token cannot have"))
			break
		}
	}
	if len(s.Keys) == 0 && !s.Addr.Loopback() {
		problems = append(problems, errors.New("API_ADDR: not a loopback address, so that anybody could use the service; set API_KEYS"))
	}
	if strings.TrimSpace(s.Environment) == "" {
		problems = append(problems, errors.New("ENVIRONMENT: must not be blank"))
	}
	return errors.Join(problems...)
}

// Config returns what the settings mean for [New].
func (s *Settings) Config(log zerolog.Logger) Config {
	c := Config{Environment: s.Environment, OpenMetrics: s.Addr.Loopback(), Log: log}
	for _, key := range s.Keys {
		c.Keys = append(c.Keys, string(key))
	}
	return c
}

// isToken tells whether s can follow "Bearer " in a header: printable ASCII without spaces.
func isToken(s string) bool {
	return s != "" && strings.IndexFunc(s, func(r rune) bool { return r <= ' ' || r > '~' }) < 0
}
