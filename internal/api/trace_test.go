package api_test

import (
	"encoding/json"
	"fmt"
	"net/http"
	"slices"
	"strings"
	"testing"

	"go.opentelemetry.io/otel/codes"
	sdk "go.opentelemetry.io/otel/sdk/trace"
	"go.opentelemetry.io/otel/sdk/trace/tracetest"

	"github.com/sluicebox/sluicebox/internal/api"
)

const (
	sampled   = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"
	unsampled = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-00"
	givenID   = "4bf92f3577b34da6a3ce929d0e0e4736"
)

// startTraced is a service with a recorder of its spans.
func startTraced(t *testing.T, url string) (*service, func() tracetest.SpanStubs) {
	t.Helper()
	recorder := tracetest.NewSpanRecorder()
	provider := sdk.NewTracerProvider(sdk.WithSpanProcessor(recorder))
	s := startOn(t, url, api.Config{Environment: "test", Tracer: provider.Tracer("test")})
	return s, func() tracetest.SpanStubs { return tracetest.SpanStubsFromReadOnlySpans(recorder.Ended()) }
}

// kept is the trace context of an event.
func (s *service) kept(t *testing.T, email string) (trace string) {
	t.Helper()
	err := s.admin.QueryRow(t.Context(), `SELECT trace_context FROM event_outbox WHERE event_context->>'email' = $1`, email).Scan(&trace)
	if err != nil {
		t.Fatal(err)
	}
	return trace
}

// lastLine is the last line of the log.
func (s *service) lastLine(t *testing.T) (fields map[string]any) {
	t.Helper()
	lines := strings.Split(strings.TrimSpace(s.logs.String()), "\n")
	if err := json.Unmarshal([]byte(lines[len(lines)-1]), &fields); err != nil {
		t.Fatal(err)
	}
	return fields
}

func TestTracing(t *testing.T) {
	t.Parallel()
	s, ended := startTraced(t, database(t))

	s.create(t, "canary@example.com", "traceparent", sampled, "User-Agent", "canary")
	span := ended()[0]
	if span.Name != "POST /users" || span.Parent.SpanID().String() != "00f067aa0ba902b7" || span.SpanContext.TraceID().String() != givenID {
		t.Errorf("span %q of %v in %v", span.Name, span.Parent, span.SpanContext)
	}
	var attributes []string
	for _, attribute := range span.Attributes {
		attributes = append(attributes, fmt.Sprintf("%s=%v", attribute.Key, attribute.Value.AsInterface()))
	}
	if want := []string{"http.request.method=POST", "http.route=/users", "http.response.status_code=201"}; !slices.Equal(attributes, want) {
		t.Errorf("attributes %q, want %q", attributes, want)
	}
	if got, want := s.kept(t, "canary@example.com"), "00-"+givenID+"-"+span.SpanContext.SpanID().String()+"-01"; got != want {
		t.Errorf("the event keeps %q, want the span of the request, %q", got, want)
	}
	if got := s.lastLine(t)["trace_id"]; got != givenID {
		t.Errorf("the log names trace %v", got)
	}

	s.create(t, "unsampled@example.com", "traceparent", unsampled)
	if got := s.kept(t, "unsampled@example.com"); !strings.HasPrefix(got, "00-"+givenID+"-") || !strings.HasSuffix(got, "-00") || len(ended()) != 1 {
		t.Errorf("a trace that is not sampled: the event keeps %q, %d spans", got, len(ended()))
	}

	s.create(t, "alone@example.com")
	span = ended()[1]
	if got := s.kept(t, "alone@example.com"); span.Parent.IsValid() || !strings.Contains(got, span.SpanContext.TraceID().String()) {
		t.Errorf("a request of no trace: parent %v, the event keeps %q", span.Parent, got)
	}

	s.do(t, http.MethodGet, "/secret@example.com", "")
	s.do(t, "INVENTED", "/users", "")
	if spans := ended(); spans[2].Name != "GET" || spans[3].Name != "_OTHER" || len(spans) != 4 {
		t.Errorf("spans of what has no route: %v", spans[2:])
	}
	for _, path := range []string{"/livez", "/readyz", "/healthz", "/metrics"} {
		s.do(t, http.MethodGet, path, "")
	}
	if spans := ended(); len(spans) != 4 {
		t.Errorf("probes are traced: %v", spans[4:])
	}
}

func TestAFailedRequestIsAFailedSpan(t *testing.T) {
	t.Parallel()
	s, ended := startTraced(t, nowhere)
	s.do(t, http.MethodGet, "/users/1", "")
	if span := ended()[0]; span.Name != "GET /users/{id}" || span.Status.Code != codes.Error {
		t.Errorf("span %q, status %v", span.Name, span.Status)
	}
}

func TestWithoutTracingTheLogNamesTheTraceOfTheClient(t *testing.T) {
	t.Parallel()
	s := startOn(t, nowhere, api.Config{Environment: "test"})
	s.do(t, http.MethodGet, "/nosuch", "", "traceparent", unsampled)
	if got := s.lastLine(t)["trace_id"]; got != givenID {
		t.Errorf("trace %v", got)
	}
	for _, given := range []string{"00-nonsense", "-"} {
		s.do(t, http.MethodGet, "/nosuch", "", "traceparent", given)
		if got, there := s.lastLine(t)["trace_id"]; there {
			t.Errorf("trace %v of traceparent %q", got, given)
		}
	}
}
