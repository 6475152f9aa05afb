package ops_test

import (
	"context"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"

	"go.uber.org/goleak"

	"github.com/sluicebox/sluicebox/internal/cli"
	"github.com/sluicebox/sluicebox/internal/ops"
	"github.com/sluicebox/sluicebox/internal/pipeline"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// TestServe holds that the server ends with its context, an idle connection open or not, and leaves nothing behind.
func TestServe(t *testing.T) {
	t.Parallel()
	listener, err := new(net.ListenConfig).Listen(t.Context(), "tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	ctx, stop := context.WithCancel(t.Context())
	served := make(chan error, 1)
	go func() { served <- ops.Serve(ctx, listener, ops.NewMetrics(cli.Build{}).Handler()) }()
	req, err := http.NewRequestWithContext(t.Context(), http.MethodGet, "http://"+listener.Addr().String()+"/livez", nil)
	if err != nil {
		t.Fatal(err)
	}
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := io.Copy(io.Discard, resp.Body); err != nil || resp.StatusCode != http.StatusOK {
		t.Errorf("/livez: %d, %v", resp.StatusCode, err)
	}
	_ = resp.Body.Close()
	stop()
	if err := <-served; err != nil {
		t.Errorf("ended with %v", err)
	}
}

// TestHealth holds what orchestrators are told in each state.
func TestHealth(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		state  pipeline.State
		reason string
		ready  int
		text   string
		began  int
	}{
		{"", "", 503, "starting", 503},
		{pipeline.Starting, "", 503, "starting", 503},
		{pipeline.Paused, "Postgres is down", 503, "paused: Postgres is down", 503},
		{pipeline.Stopped, "", 503, "stopped", 503},
		{pipeline.Standby, "another daemon leads", 200, "standby: another daemon leads", 200},
		{pipeline.Recovering, "", 200, "recovering", 200},
		{pipeline.Backfill, "", 200, "backfill", 200},
		{pipeline.Streaming, "", 200, "streaming", 200},
	} {
		m := ops.NewMetrics(cli.Build{})
		if c.state != "" {
			m.State(c.state, c.reason)
		}
		ask := func(path string) (int, string) {
			answer := httptest.NewRecorder()
			m.Handler().ServeHTTP(answer, httptest.NewRequestWithContext(t.Context(), http.MethodGet, path, nil))
			return answer.Code, strings.TrimSpace(answer.Body.String())
		}
		if code, text := ask("/readyz"); code != c.ready || text != c.text {
			t.Errorf("%q: /readyz says %d %q, want %d %q", c.state, code, text, c.ready, c.text)
		}
		if code, _ := ask("/livez"); code != http.StatusOK {
			t.Errorf("%q: /livez says %d", c.state, code)
		}
		if code, _ := ask("/startupz"); code != c.began {
			t.Errorf("%q: /startupz says %d, want %d", c.state, code, c.began)
		}
		m.State(pipeline.Paused, "ClickHouse is down")
		if code, _ := ask("/startupz"); code != c.began {
			t.Errorf("%q, then paused: /startupz says %d, want %d", c.state, code, c.began)
		}
	}
}
