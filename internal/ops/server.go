package ops

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"time"

	"github.com/go-chi/chi/v5"
	"github.com/prometheus/client_golang/prometheus/promhttp"

	"github.com/sluicebox/sluicebox/internal/pipeline"
)

// Handler serves the admin address.
//
//	/livez     200 while the process runs; looks at nothing else
//	/readyz    200 while the pipeline works or stands by, 503 with the reason in words otherwise
//	/startupz  200 once it has worked or stood by for the first time
//	/metrics   Prometheus
func (m *Metrics) Handler() http.Handler {
	r := chi.NewRouter()
	r.Get("/livez", func(w http.ResponseWriter, _ *http.Request) { say(w, http.StatusOK, "ok") })
	r.Get("/readyz", m.ready)
	r.Get("/startupz", m.started)
	r.Method(http.MethodGet, "/metrics", promhttp.HandlerFor(m.Registry, promhttp.HandlerOpts{}))
	return r
}

func (m *Metrics) ready(w http.ResponseWriter, _ *http.Request) {
	m.mu.Lock()
	state, reason := m.now, m.reason
	m.mu.Unlock()
	text := string(state)
	if reason != "" {
		text += ": " + reason
	}
	switch {
	case works(state):
		say(w, http.StatusOK, text)
	case state == "":
		say(w, http.StatusServiceUnavailable, "starting")
	default:
		say(w, http.StatusServiceUnavailable, text)
	}
}

// works tells whether a daemon in this state does what it is there for. The first backfill of a large table takes hours and is work: an
// orchestrator that gives a start some minutes must not take it for one that hangs.
func works(state pipeline.State) bool {
	switch state {
	case pipeline.Streaming, pipeline.Standby, pipeline.Backfill, pipeline.Recovering:
		return true
	case pipeline.Starting, pipeline.Paused, pipeline.Stopped:
	}
	return false
}

func (m *Metrics) started(w http.ResponseWriter, _ *http.Request) {
	m.mu.Lock()
	began := m.began
	m.mu.Unlock()
	if !began {
		say(w, http.StatusServiceUnavailable, "starting")
		return
	}
	say(w, http.StatusOK, "ok")
}

func say(w http.ResponseWriter, status int, text string) {
	w.Header().Set("Content-Type", "text/plain; charset=utf-8")
	w.Header().Set("Cache-Control", "no-store")
	w.WriteHeader(status)
	_, _ = fmt.Fprintln(w, text) // the client is gone if this fails
}

// Serve serves handler on a listener until ctx is done.
func Serve(ctx context.Context, listener net.Listener, handler http.Handler) error {
	const timeout = 10 * time.Second
	server := &http.Server{
		Handler: handler, ReadHeaderTimeout: timeout, ReadTimeout: timeout, WriteTimeout: timeout, IdleTimeout: time.Minute,
		MaxHeaderBytes: 16 << 10,
	}
	closed := make(chan struct{})
	stop := context.AfterFunc(ctx, func() {
		shut, cancel := context.WithTimeout(context.WithoutCancel(ctx), time.Second)
		defer cancel()
		_ = server.Shutdown(shut) // what is still open after that is cut by the end of the process
		close(closed)
	})
	err := server.Serve(listener)
	if !stop() {
		<-closed
	}
	if errors.Is(err, http.ErrServerClosed) {
		return nil
	}
	return fmt.Errorf("serve the admin address: %w", err)
}
