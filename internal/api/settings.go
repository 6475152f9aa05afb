package api

import (
	"errors"
	"fmt"
	"strings"

	"github.com/rs/zerolog"

	"github.com/sluicebox/sluicebox/internal/cli"
	"github.com/sluicebox/sluicebox/internal/pgurl"
)

// Settings is the command line of the service.
type Settings struct {
	DatabaseURL cli.Credential `env:"DATABASE_URL" required:"" help:"Postgres, as a URL; its host may be the folder of a Unix socket. pool_max_conns (16 unless given, or one for each processor if those are more) and connect_timeout (seconds) may be among its parameters."`
	Addr        cli.Addr       `env:"API_ADDR" default:"127.0.0.1:8080" help:"Address to serve HTTP on."`
	Keys        cli.Credential `env:"API_KEYS" help:"Bearer keys that may use the service, separated by commas: random texts, or sha256: and the SHA-256 of one in hexadecimal digits. Several are for changing one without a pause, and a file with them is read again when it changes. Without any the service is open to everybody, which is allowed on a loopback address only."`
	RateLimit   float64        `env:"API_RATE_LIMIT" default:"0" min:"0" max:"1000000" placeholder:"N" help:"Requests a second that a client may send: a key or, without keys, an address. Others are answered with 429. 0: any number."`
	RateBurst   int            `env:"API_RATE_BURST" default:"0" min:"0" max:"1000000" help:"How many requests of a client may come at once under API_RATE_LIMIT. 0: those of one second."`
	MaxRequests int            `env:"API_MAX_REQUESTS" default:"0" min:"0" max:"1000000" help:"Requests that may be in hand at once. Others are answered with 503 at once. 0: 32 for each connection (pool_max_conns of DATABASE_URL)."`
	Environment string         `env:"ENVIRONMENT" default:"development" help:"Deployment, written into each event."`
	cli.Log
}

// Validate checks what the types of the settings cannot.
func (s *Settings) Validate() error {
	var problems []error
	if err := pgurl.Problem(s.DatabaseURL.Now()); err != nil {
		problems = append(problems, fmt.Errorf("DATABASE_URL: %w", err))
	}
	if _, err := parseKeys(s.Keys.Now()); err != nil {
		problems = append(problems, fmt.Errorf("API_KEYS: %w", err))
	}
	if s.Keys.Now() == "" && !s.Addr.Loopback() {
		problems = append(problems, errors.New("API_ADDR: not a loopback address, so that anybody could use the service; set API_KEYS"))
	}
	if s.RateBurst > 0 && s.RateLimit == 0 {
		problems = append(problems, errors.New("API_RATE_BURST: means nothing without API_RATE_LIMIT; set that too"))
	}
	if strings.TrimSpace(s.Environment) == "" {
		problems = append(problems, errors.New("ENVIRONMENT: must not be blank"))
	}
	return errors.Join(problems...)
}

// Config returns what the settings mean for [New].
func (s *Settings) Config(log zerolog.Logger) Config {
	return Config{
		Environment: s.Environment, Keys: s.Keys, OpenMetrics: s.Addr.Loopback(),
		RateLimit: s.RateLimit, RateBurst: s.RateBurst, MaxRequests: s.MaxRequests, Log: log,
	}
}
