package api

import (
	"context"
	"errors"
	"fmt"
	stdlog "log"
	"net"
	"net/http"
	"sync"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/rs/zerolog"

	"github.com/sluicebox/sluicebox/internal/cli"
	"github.com/sluicebox/sluicebox/internal/pgurl"
)

const (
	// maxHeader, in bytes, is far above what a client needs that is not an attacker.
	maxHeader = 16 << 10
	// drainTimeout is above requestTimeout, and below the 30 s that orchestrators wait before they kill.
	drainTimeout = 15 * time.Second
	// poolConns is how many connections there may be unless DATABASE_URL says so (pool_max_conns). A request has one for as long as Postgres
	// takes to commit, mostly waiting for its disk, and commits that wait together share one write of it. The driver's default, the number of
	// processors but at least 4, is for work that keeps processors busy.
	poolConns = 16
	// connectTimeout bounds a connection attempt, unless the URL says so itself. The default of the driver is minutes.
	connectTimeout = 5 * time.Second
)

// timeouts are how long a client may take for what it does.
type timeouts struct {
	header time.Duration // to send the header of a request
	body   time.Duration // to send its body
	whole  time.Duration // to send all of it; the same again to read the answer, from the end of the header on
	idle   time.Duration // to send the next one on the same connection
}

func usualTimeouts() timeouts {
	return timeouts{
		// Both are far above what a client needs that is not an attacker.
		header: 5 * time.Second,
		body:   10 * time.Second,
		// Above header, body and requestTimeout together, which are the ones meant to end a request.
		whole: 30 * time.Second,
		// Above the 60 s after which common proxies close their side, so that they never send into a closed connection.
		idle: 75 * time.Second,
	}
}

// Open returns a pool on the database of the settings, and looks whether the database has what the service needs.
//
// What only an operator can mend, like a missing table or a wrong password, is an error with [cli.CodePreflight]. That Postgres
// does not answer is none: it may come back without anybody starting this service again.
func Open(ctx context.Context, s Settings, log zerolog.Logger) (*pgxpool.Pool, error) {
	config, err := pgxpool.ParseConfig(s.DatabaseURL.Now())
	if err != nil {
		return nil, errors.New("parse DATABASE_URL: not a Postgres URL")
	}
	if plain, err := pgx.ParseConfig(s.DatabaseURL.Now()); err == nil && plain.RuntimeParams["pool_max_conns"] == "" {
		config.MaxConns = max(config.MaxConns, poolConns)
	}
	if config.ConnConfig.ConnectTimeout == 0 || config.ConnConfig.ConnectTimeout > time.Minute {
		config.ConnConfig.ConnectTimeout = connectTimeout
	}
	if config.ConnConfig.RuntimeParams["application_name"] == "" {
		config.ConnConfig.RuntimeParams["application_name"] = "sluicebox api"
	}
	config.BeforeConnect = func(_ context.Context, c *pgx.ConnConfig) error {
		pgurl.Renew(&c.Config, s.DatabaseURL.Now())
		return nil
	}
	pool, err := pgxpool.NewWithConfig(ctx, config)
	if err != nil {
		return nil, fmt.Errorf("open pool: %w", err)
	}
	if server := pgurl.Plain(s.DatabaseURL.Now()); server != "" {
		log.Warn().Str("server", server).Str("hint", "add sslmode=verify-full (and sslrootcert) to DATABASE_URL").
			Msg("the connection to Postgres may not be encrypted: what is in it can be read on the way")
	}
	err = check(ctx, pool)
	var state unready
	switch {
	case err == nil:
	case errors.As(err, &state) && state.hint != "":
		pool.Close()
		return nil, &cli.Exit{Code: cli.CodePreflight, Err: err, Hint: state.hint}
	case ctx.Err() != nil:
		pool.Close()
		return nil, ctx.Err()
	default:
		log.Warn().Err(err).Msg("the database is not ready; serving without it until it is")
	}
	return pool, nil
}

// Serve answers requests on the listener until ctx is cancelled, and then lets those that have begun come to their end, for at most
// 15 seconds. It closes the listener.
func (a *API) Serve(ctx context.Context, listener net.Listener) error {
	server := &http.Server{
		Handler:           a,
		ReadHeaderTimeout: a.timeouts.header,
		ReadTimeout:       a.timeouts.whole,
		WriteTimeout:      a.timeouts.whole,
		IdleTimeout:       a.timeouts.idle,
		MaxHeaderBytes:    maxHeader,
		ErrorLog:          stdlog.New(a.log, "", 0),
		BaseContext:       func(net.Listener) context.Context { return context.WithoutCancel(ctx) },
	}
	running, stop := context.WithCancel(ctx)
	var background sync.WaitGroup
	background.Go(func() { a.expireAlways(running) })
	defer background.Wait()
	defer stop()

	served := make(chan error, 1)
	go func() { served <- server.Serve(listener) }()
	a.log.Info().Str("addr", listener.Addr().String()).Msg("serving")
	select {
	case err := <-served:
		return fmt.Errorf("serve: %w", err)
	case <-ctx.Done():
	}

	a.log.Info().Msg("stopping: no new requests, those that have begun come to their end")
	drain, cancel := context.WithTimeout(context.WithoutCancel(ctx), drainTimeout)
	defer cancel()
	err := server.Shutdown(drain)
	if err != nil {
		_ = server.Close() // what it could say is that connections are broken, which is what is wanted
	}
	if ended := <-served; err == nil && !errors.Is(ended, http.ErrServerClosed) {
		return fmt.Errorf("serve: %w", ended)
	}
	if err != nil {
		return fmt.Errorf("drain: requests were cut off: %w", err)
	}
	a.log.Info().Msg("stopped")
	return nil
}
