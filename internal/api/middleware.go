package api

import (
	"bytes"
	"context"
	"crypto/rand"
	"fmt"
	"io"
	"mime"
	"net/http"
	"runtime/debug"
	"strings"
	"time"

	"github.com/danielgtaylor/huma/v2"
	"github.com/go-chi/chi/v5"
	"github.com/go-chi/chi/v5/middleware"
	"github.com/rs/zerolog"
	"go.opentelemetry.io/otel/trace"
)

const (
	// requestTimeout bounds all work for one request. A client that has waited so long has given up.
	requestTimeout = 10 * time.Second
	// maxBody, in bytes, is many times the largest valid body.
	maxBody = 64 << 10
	// maxArriving is how many bodies may be on their way at once. It bounds the memory that slow clients take up, to 64 MiB.
	maxArriving = 1024
)

// record is what is known of a request for its line in the log.
type record struct {
	key    int    // which of the keys it came with, counted from 1; 0: none
	digest digest // of that key
	err    error
	stack  []byte
}

type recordKey struct{}

// recordOf is the record of a request; one that nobody reads if the request is not observed.
func recordOf(ctx context.Context) *record {
	if rec, ok := ctx.Value(recordKey{}).(*record); ok {
		return rec
	}
	return &record{}
}

// note keeps the error for the line in the log if somebody has to look into it.
func note(ctx context.Context, p *huma.ErrorModel, err error) {
	if p.Status >= http.StatusInternalServerError {
		recordOf(ctx).err = err
	}
}

// observe counts, logs and traces each request, once, with the route and not the path: paths and bodies may hold personal data. Without a
// tracer nothing is traced.
func observe(log zerolog.Logger, meters *meters, tracer trace.Tracer) func(http.Handler) http.Handler {
	return func(next http.Handler) http.Handler {
		return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			start := time.Now()
			rec := &record{}
			id := requestID(r.Header.Get("X-Request-Id"))
			w.Header().Set("X-Request-Id", id)
			wrapped := middleware.NewWrapResponseWriter(w, r.ProtoMajor)
			meters.inFlight.Inc()
			defer meters.inFlight.Dec()

			r = r.WithContext(context.WithValue(r.Context(), recordKey{}, rec))
			var span trace.Span
			if tracer != nil && !isProbe(r.URL.Path) {
				r, span = startSpan(r, tracer)
			}
			next.ServeHTTP(wrapped, r)

			route, status, took := routeOf(r), max(wrapped.Status(), http.StatusOK), time.Since(start)
			meters.observe(r.Method, route, status, took)
			if span != nil {
				endSpan(span, r.Method, route, status)
			}
			event := log.WithLevel(level(route, status)).Str("method", methodLabel(r.Method)).Str("route", route).Int("status", status).
				Dur("took", took).Int("bytes", wrapped.BytesWritten()).Str("request_id", id)
			if id := traceID(r); id != "" {
				event.Str("trace_id", id)
			}
			if rec.key > 0 {
				event.Int("key", rec.key)
			}
			if rec.err != nil {
				event.Err(rec.err)
			}
			if rec.stack != nil {
				event.Bytes("stack", rec.stack)
			}
			event.Msg("request")
		})
	}
}

// noRoute is the route of a request that no route is for.
const noRoute = "none"

func routeOf(r *http.Request) string {
	if route := chi.RouteContext(r.Context()).RoutePattern(); route != "" {
		return route
	}
	return noRoute
}

// isProbe says whether a path, or a route, is what machines ask for all the time.
func isProbe(path string) bool {
	switch path {
	case "/livez", "/healthz", "/readyz", "/metrics":
		return true
	default:
		return false
	}
}

// level keeps the probes of orchestrators out of the log unless they fail.
func level(route string, status int) zerolog.Level {
	switch {
	case status >= http.StatusInternalServerError:
		return zerolog.ErrorLevel
	case isProbe(route):
		return zerolog.DebugLevel
	default:
		return zerolog.InfoLevel
	}
}

// requestID returns the id that a proxy gave, if it is one, or a new one.
func requestID(given string) string {
	const letters = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789-_."
	if given != "" && len(given) <= 64 && strings.Trim(given, letters) == "" {
		return given
	}
	return rand.Text()
}

// recoverPanic answers 500 after a panic; the stack goes to the log.
func recoverPanic(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		rec := recordOf(r.Context())
		defer func() {
			reason := recover()
			if reason == nil {
				return
			}
			if reason == http.ErrAbortHandler { //nolint:errorlint // net/http compares it like this too
				panic(reason)
			}
			err := fmt.Errorf("panic: %v", reason)
			rec.err, rec.stack = err, debug.Stack()
			if wrapped, ok := w.(middleware.WrapResponseWriter); !ok || wrapped.Status() == 0 {
				fail(w, r, err)
			}
		}()
		next.ServeHTTP(w, r)
	})
}

// secureHeaders tells browsers and caches to do nothing with an answer but hand it over.
func secureHeaders(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		h := w.Header()
		h.Set("Cache-Control", "no-store")
		h.Set("Content-Security-Policy", "default-src 'none'; frame-ancestors 'none'")
		h.Set("Referrer-Policy", "no-referrer")
		h.Set("X-Content-Type-Options", "nosniff")
		next.ServeHTTP(w, r)
	})
}

func (a *API) limitTime(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.ContentLength != 0 {
			// Also of a body that is of no use here: net/http waits for it before it sends the answer.
			_ = http.NewResponseController(w).SetReadDeadline(time.Now().Add(a.timeouts.body)) // recorders of tests have none
		}
		ctx, cancel := context.WithTimeout(r.Context(), requestTimeout)
		defer cancel()
		next.ServeHTTP(w, r.WithContext(ctx))
	})
}

// readBody reads the body of a POST before huma does, which would answer 500 to a client that breaks off.
//
// Only application/json is taken. Web pages of other sites can send anything else without asking, also to a loopback address.
func (a *API) readBody(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.Method != http.MethodPost {
			next.ServeHTTP(w, r)
			return
		}
		if media, _, err := mime.ParseMediaType(r.Header.Get("Content-Type")); err != nil || media != "application/json" {
			fail(w, r, errMediaType)
			return
		}
		body, err := a.arrived(w, r)
		if err != nil {
			fail(w, r, err)
			return
		}
		r.Body = io.NopCloser(bytes.NewReader(body))
		next.ServeHTTP(w, r)
	})
}

// arrived waits for the body.
func (a *API) arrived(w http.ResponseWriter, r *http.Request) ([]byte, error) {
	if !a.arriving.take() {
		a.meters.refused.WithLabelValues(reasonBusy).Inc()
		return nil, errBusy
	}
	defer a.arriving.leave()
	body, err := io.ReadAll(http.MaxBytesReader(w, r.Body, maxBody))
	if err != nil {
		return nil, bodyError(err)
	}
	_ = http.NewResponseController(w).SetReadDeadline(time.Time{}) // a deadline that passes later would cancel the request
	return body, nil
}
