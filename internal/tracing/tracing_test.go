package tracing_test

import (
	"context"
	"encoding/json"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"slices"
	"strings"
	"sync"
	"testing"

	"go.opentelemetry.io/otel/trace"

	"github.com/sluicebox/sluicebox/internal/cli"
	"github.com/sluicebox/sluicebox/internal/testotlp"
	"github.com/sluicebox/sluicebox/internal/tracing"
)

// logs are lines that several goroutines write.
type logs struct {
	mu   sync.Mutex
	text strings.Builder
}

func (l *logs) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.text.Write(p)
}

// warnings are the lines that are none of info.
func (l *logs) warnings(t *testing.T) (all []string) {
	t.Helper()
	l.mu.Lock()
	defer l.mu.Unlock()
	for line := range strings.Lines(l.text.String()) {
		var entry struct{ Level, Message, Error, Reason string }
		if err := json.Unmarshal([]byte(line), &entry); err != nil {
			t.Fatalf("%v in %q", err, line)
		}
		if entry.Level != "info" {
			all = append(all, entry.Message+": "+entry.Error)
		}
	}
	return all
}

// begin starts tracing with some variables, and none else that OpenTelemetry knows.
func begin(t *testing.T, environ map[string]string) (*tracing.Tracing, *logs) {
	t.Helper()
	for _, variable := range os.Environ() {
		if name, _, _ := strings.Cut(variable, "="); strings.HasPrefix(name, "OTEL_") {
			t.Setenv(name, "")
		}
	}
	for name, value := range environ {
		t.Setenv(name, value)
	}
	said := &logs{}
	return tracing.Start(t.Context(), "sluicebox-test", cli.Log{LogLevel: "info"}.FoldingLogger(said)), said
}

func span(tracer trace.Tracer, name string) {
	_, span := tracer.Start(context.Background(), name)
	span.End()
}

// Not parallel: OpenTelemetry reads the environment, and has one place to tell its troubles.
func TestTracing(t *testing.T) {
	t.Run("spans arrive, the last ones when it stops", func(t *testing.T) {
		collector := testotlp.Start(t)
		traces, said := begin(t, map[string]string{
			"OTEL_EXPORTER_OTLP_ENDPOINT": collector.URL, "OTEL_EXPORTER_OTLP_HEADERS": "x-key=canary", "OTEL_RESOURCE_ATTRIBUTES": "team=a",
		})
		span(traces.Tracer(), "first")
		span(traces.Tracer(), "last")
		traces.Stop(t.Context())
		if got := collector.Spans("last"); len(got) != 1 || got[0].Service != "sluicebox-test" {
			t.Errorf("spans: %s", collector.Everything())
		}
		if got := collector.Header().Get("X-Key"); got != "canary" {
			t.Errorf("header %q", got)
		}
		if text := collector.Everything(); !strings.Contains(text, `"team"`) || strings.Contains(text, "command") {
			t.Errorf("it calls itself %s", text)
		}
		if text := said.text.String(); len(said.warnings(t)) > 0 || strings.Contains(text, "canary") || !strings.Contains(text, collector.URL) {
			t.Errorf("log: %s", text)
		}
	})
	t.Run("the standard variables choose what is recorded, and the name", func(t *testing.T) {
		collector := testotlp.Start(t)
		traces, _ := begin(t, map[string]string{
			"OTEL_EXPORTER_OTLP_TRACES_ENDPOINT": collector.URL + "/v1/traces", "OTEL_TRACES_SAMPLER": "traceidratio", "OTEL_TRACES_SAMPLER_ARG": "0.5",
			"OTEL_SERVICE_NAME": "mine",
		})
		const many = 1000
		for range many {
			span(traces.Tracer(), "request")
		}
		traces.Stop(t.Context())
		got := collector.Spans("request")
		if len(got) < many/4 || len(got) > many*3/4 || got[0].Service != "mine" {
			t.Errorf("%d spans of %d, want half of them", len(got), many)
		}
	})
	for name, environ := range map[string]map[string]string{
		"no collector":           {},
		"the exporter is none":   {"OTEL_EXPORTER_OTLP_ENDPOINT": "http://127.0.0.1:1", "OTEL_TRACES_EXPORTER": "none"},
		"OpenTelemetry disabled": {"OTEL_EXPORTER_OTLP_ENDPOINT": "http://127.0.0.1:1", "OTEL_SDK_DISABLED": "TRUE"},
	} {
		t.Run("off without a word: "+name, func(t *testing.T) {
			traces, said := begin(t, environ)
			if traces.Tracer() != nil || said.text.Len() > 0 {
				t.Errorf("tracer %v, log %s", traces.Tracer(), said.text.String())
			}
			traces.Stop(t.Context())
		})
	}
	for name, environ := range map[string]map[string]string{
		"OTEL_EXPORTER_OTLP_ENDPOINT: not a URL":        {"OTEL_EXPORTER_OTLP_ENDPOINT": "collector:4318"},
		"OTEL_EXPORTER_OTLP_TRACES_ENDPOINT: not a URL": {"OTEL_EXPORTER_OTLP_TRACES_ENDPOINT": "http://%zz-canary"},
		"OTEL_EXPORTER_OTLP_ENDPOINT: has a user":       {"OTEL_EXPORTER_OTLP_ENDPOINT": "http://user:canary@127.0.0.1:1"},
		"OTEL_EXPORTER_OTLP_PROTOCOL: grpc":             {"OTEL_EXPORTER_OTLP_ENDPOINT": "http://127.0.0.1:1", "OTEL_EXPORTER_OTLP_PROTOCOL": "grpc"},
	} {
		t.Run("off with a warning: "+name, func(t *testing.T) {
			traces, said := begin(t, environ)
			if got := said.warnings(t); traces.Tracer() != nil || len(got) != 1 || !strings.Contains(got[0], name) || strings.Contains(got[0], "canary") {
				t.Errorf("tracer %v, warnings %q", traces.Tracer(), got)
			}
		})
	}
	t.Run("settings that are not understood are told of, without their values", func(t *testing.T) {
		collector := testotlp.Start(t)
		traces, said := begin(t, map[string]string{
			"OTEL_EXPORTER_OTLP_ENDPOINT": collector.URL, "OTEL_EXPORTER_OTLP_HEADERS": "canary", "OTEL_EXPORTER_OTLP_TIMEOUT": "soon",
		})
		traces.Stop(t.Context())
		if got := said.warnings(t); len(got) != 2 || strings.Contains(said.text.String(), "canary") {
			t.Errorf("warnings %q", got)
		}
	})
	t.Run("a collector that is down, refuses or hangs costs spans and one warning", func(t *testing.T) {
		down, err := new(net.ListenConfig).Listen(t.Context(), "tcp", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		_ = down.Close()
		hanging := make(chan struct{})
		hangs := httptest.NewServer(http.HandlerFunc(func(http.ResponseWriter, *http.Request) { <-hanging }))
		t.Cleanup(hangs.Close)
		t.Cleanup(func() { close(hanging) }) // before the server waits for it
		refuses := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
			w.WriteHeader(http.StatusForbidden)
			_, _ = w.Write([]byte(strings.Repeat("no ", 10_000)))
		}))
		t.Cleanup(refuses.Close)
		for _, url := range []string{"http://" + down.Addr().String(), refuses.URL, hangs.URL} {
			traces, said := begin(t, map[string]string{
				"OTEL_EXPORTER_OTLP_ENDPOINT": url, "OTEL_EXPORTER_OTLP_TIMEOUT": "100", "OTEL_BSP_SCHEDULE_DELAY": "1", "OTEL_BSP_MAX_QUEUE_SIZE": "8",
			})
			for range 10_000 { // far more than may wait
				span(traces.Tracer(), "request")
			}
			traces.Stop(t.Context())
			// Each kind of trouble is told once, and a busy machine knows more of them: an answer that came later than the time-out, and
			// what was left when Stop gave up, which the next one's log may be told, since OpenTelemetry has one place for it.
			got := said.warnings(t)
			wrong := func(w string) bool { return !strings.HasPrefix(w, "traces are not sent: ") || len(w) > 400 }
			if len(got) < 1 || len(got) > 5 || slices.ContainsFunc(got, wrong) {
				t.Errorf("%s: warnings %q", url, got)
			}
		}
	})
}
