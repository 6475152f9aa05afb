// Package api is an HTTP service that creates users: an example of a writer of events, small but whole.
//
//	POST /users ─▶ tx{ idempotency key, users, outbox.Publish } ─▶ 201, once committed
//
// A user and the event that tells of it are one transaction, so one is never there without the other. Delivering the event is
// not the business of this service: it knows no ClickHouse, and works as well while that is down.
//
// Every answer to an error is made by one function, answer, as a problem document (RFC 9457). The routes are described in an
// OpenAPI 3.1 document under /openapi.json, and shown to people under /docs.
package api

import (
	"cmp"
	"fmt"
	"net/http"

	"github.com/danielgtaylor/huma/v2"
	"github.com/danielgtaylor/huma/v2/adapters/humachi"
	"github.com/go-chi/chi/v5"
	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/rs/zerolog"
	"go.opentelemetry.io/otel/trace"

	"github.com/sluicebox/sluicebox/internal/cli"
)

// Config is what the service needs to know besides its database.
type Config struct {
	Environment string         // written into each event
	Keys        cli.Credential // bearer keys, separated by commas, each as it is or as "sha256:" and its digest in hexadecimal digits; none: anybody on this machine
	OpenMetrics bool           // whether /metrics is served without a key
	RateLimit   float64        // requests a second that a key or, without keys, an address may send; 0: any number
	RateBurst   int            // how many of them may come at once; 0: those of one second
	MaxRequests int            // requests that may be in hand at once; 0: 32 for each connection of the pool
	Log         zerolog.Logger
	Tracer      trace.Tracer // makes a span of each request; nil: none
}

// API is the service. Make one with [New].
type API struct {
	pool        *pgxpool.Pool
	environment string
	log         zerolog.Logger
	router      chi.Router
	meters      *meters
	timeouts    timeouts
	arriving    places // for bodies
}

// New returns the service on a database. It does not connect; the caller closes the pool.
func New(pool *pgxpool.Pool, c Config) (*API, error) {
	keys, err := newKeyring(c.Keys, c.Log)
	if err != nil {
		return nil, fmt.Errorf("read the keys: %w", err)
	}
	meters := newMeters(pool)
	a := &API{
		pool: pool, environment: c.Environment, log: c.Log, router: chi.NewMux(), meters: meters,
		timeouts: usualTimeouts(), arriving: make(places, maxArriving),
	}

	a.router.Use(observe(c.Log, meters, c.Tracer), recoverPanic, secureHeaders, a.limitTime)
	a.router.NotFound(func(w http.ResponseWriter, r *http.Request) { fail(w, r, errNoRoute) })
	a.router.MethodNotAllowed(a.methodNotAllowed)

	a.router.Get("/livez", live)
	a.router.Get("/healthz", live)
	a.router.Get("/readyz", a.ready)

	locked := a.router.With(requireKey(keys))
	metrics := locked
	if c.OpenMetrics {
		metrics = a.router
	}
	metrics.Method(http.MethodGet, "/metrics", meters.handler())

	// A request is in hand once its body is there: slow clients take nobody else's place.
	admitted := locked.With(limitRate(c.RateLimit, c.RateBurst, meters.refused.WithLabelValues(reasonRate)), a.readBody,
		limitInHand(cmp.Or(c.MaxRequests, requestsPerConnection*int(pool.Config().MaxConns)), meters.refused.WithLabelValues(reasonBusy)))
	document := humachi.New(admitted, openAPI())
	a.registerUsers(document)
	if keys.open() {
		document.OpenAPI().Security = nil
	}
	text, err := document.OpenAPI().MarshalJSON()
	if err != nil {
		return nil, fmt.Errorf("write the OpenAPI document: %w", err)
	}
	a.router.Get("/openapi.json", func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Type", "application/openapi+json")
		_, _ = w.Write(text) // a client that went away
	})
	page, err := serveDocs(document.OpenAPI())
	if err != nil {
		return nil, err
	}
	a.router.Get("/docs", page)
	return a, nil
}

// ServeHTTP answers one request.
func (a *API) ServeHTTP(w http.ResponseWriter, r *http.Request) { a.router.ServeHTTP(w, r) }

// openAPI returns the document without its operations, and huma without the routes it would add: the documents it serves itself
// are built by the first request, in a data race with the second, and its web page loads scripts from elsewhere (see docs.go).
func openAPI() huma.Config {
	config := huma.DefaultConfig("Sluicebox users", cli.ReadBuild().Version)
	config.OpenAPIPath, config.DocsPath, config.SchemasPath = "", "", ""
	config.CreateHooks = nil // would add $schema to each answer
	config.Transformers = []huma.Transformer{withoutValues}
	config.Components.SecuritySchemes = map[string]*huma.SecurityScheme{"key": {Type: "http", Scheme: "bearer"}}
	config.Security = []map[string][]string{{"key": {}}}
	return config
}

func (a *API) methodNotAllowed(w http.ResponseWriter, r *http.Request) {
	for _, method := range []string{
		http.MethodGet, http.MethodHead, http.MethodPost, http.MethodPut, http.MethodPatch, http.MethodDelete,
	} {
		if a.router.Match(chi.NewRouteContext(), method, r.URL.Path) {
			w.Header().Add("Allow", method)
		}
	}
	fail(w, r, errMethod)
}
