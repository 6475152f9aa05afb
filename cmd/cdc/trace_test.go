package main

import (
	"net"
	"net/http"
	"strings"
	"testing"

	"github.com/sluicebox/sluicebox/internal/testotlp"
)

// post creates a user over the service, within a trace.
func (d *daemon) post(t *testing.T, email, traceparent string) {
	t.Helper()
	body := strings.NewReader(`{"email":"` + email + `","first_name":"canary","last_name":"canary"}`)
	request, err := http.NewRequestWithContext(t.Context(), http.MethodPost, d.url+"/users", body)
	if err != nil {
		t.Fatal(err)
	}
	request.Header.Set("Content-Type", "application/json")
	request.Header.Set("Traceparent", traceparent)
	answer, err := http.DefaultClient.Do(request)
	if err != nil {
		t.Fatal(err)
	}
	_ = answer.Body.Close()
	if answer.StatusCode != http.StatusCreated {
		t.Fatalf("POST /users: %s", answer.Status)
	}
}

func TestTraces(t *testing.T) {
	t.Parallel()
	const trace, parent = "4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7"
	t.Run("a trace goes from the request through the event to the batch that delivers it", func(t *testing.T) {
		t.Parallel()
		collector := testotlp.Start(t)
		tracing := []string{
			"OTEL_EXPORTER_OTLP_ENDPOINT=" + collector.URL, "OTEL_EXPORTER_OTLP_HEADERS=authorization=canary", "LOG_LEVEL=debug",
		}
		l := newLine(t)
		d, api := l.start(t, tracing...), l.startAPI(t, tracing...)
		d.wait(t, `"message":"streaming"`)
		api.post(t, "canary@example.com", "00-"+trace+"-"+parent+"-01")
		l.allMarked(t)
		for _, program := range []*daemon{d, api} { // sends what is left
			if code := program.stop(t); code != 0 {
				t.Errorf("exit code %d, want 0", code)
			}
		}

		requests, batches := collector.Spans("POST /users"), collector.Spans("deliver batch")
		if len(requests) != 1 || len(batches) != 1 {
			t.Fatalf("%d spans of a request, %d of a batch, want one of each:\n%s", len(requests), len(batches), collector.Everything())
		}
		request, batch := requests[0], batches[0]
		if request.Service != "sluicebox-api" || request.TraceID() != trace {
			t.Errorf("the request is of %s, trace %s", request.Service, request.TraceID())
		}
		if links := batch.GetLinks(); len(links) != 1 || string(links[0].GetTraceId()) != string(request.GetTraceId()) ||
			string(links[0].GetSpanId()) != string(request.GetSpanId()) || batch.Service != "sluicebox-cdc" {
			t.Errorf("the batch is of %s, linked to %v, want the request's span %x", batch.Service, links, request.GetSpanId())
		}
		for _, name := range []string{"plan", "insert", "settle"} {
			if steps := collector.Spans(name); len(steps) != 1 || string(steps[0].GetParentSpanId()) != string(batch.GetSpanId()) {
				t.Errorf("steps %q: %v", name, steps)
			}
		}
		var stored string
		if err := l.ch.QueryRow(t.Context(), `SELECT trace_id FROM event_log`).Scan(&stored); err != nil || stored != trace {
			t.Errorf("ClickHouse has trace %q, %v", stored, err)
		}
		if !strings.Contains(d.text(), `"trace_id":"`+batch.TraceID()+`"`) || !strings.Contains(api.text(), `"trace_id":"`+trace+`"`) {
			t.Error("the logs don't name the traces")
		}
		for _, text := range []string{collector.Everything(), d.text(), api.text()} {
			if strings.Contains(text, "canary") || strings.Contains(text, l.db.API) {
				t.Errorf("what is nobody's business is told:\n%s", text)
			}
		}
		if got := collector.Header().Get("Authorization"); got != "canary" {
			t.Errorf("Authorization %q", got)
		}
	})
	t.Run("a collector that is down holds up nothing, and is told of once", func(t *testing.T) {
		t.Parallel()
		down, err := new(net.ListenConfig).Listen(t.Context(), "tcp", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		_ = down.Close()
		l := newLine(t)
		d := l.start(t, "OTEL_EXPORTER_OTLP_ENDPOINT=http://"+down.Addr().String(), "OTEL_BSP_SCHEDULE_DELAY=1", "CDC_BATCH_MAX_ROWS=10")
		l.write(t, 1000, 10)
		l.allMarked(t)
		if code := d.stop(t); code != 0 {
			t.Errorf("exit code %d, want 0", code)
		}
		// Once, and again after 15 and 45 s if it takes so long; of a hundred batches.
		if n := strings.Count(d.text(), "traces are not sent"); n < 1 || n > 3 {
			t.Errorf("told of %d times", n)
		}
	})
	t.Run("it is off unless a collector is named", func(t *testing.T) {
		t.Parallel()
		l := newLine(t)
		settings := []string{"LOG_LEVEL=debug", "OTEL_TRACES_SAMPLER=always_on", "OTEL_EXPORTER_OTLP_ENDPOINT="}
		d, api := l.start(t, settings...), l.startAPI(t, settings...)
		given := "00-" + trace + "-" + parent + "-01"
		api.post(t, "ada@example.com", given)
		l.allMarked(t)
		if n := l.count(t, `SELECT count(*) FROM event_outbox WHERE trace_context = $1`, given); n != 1 {
			t.Error("the event does not keep the trace of the client")
		}
		d.stop(t)
		if text := d.text() + api.text(); strings.Contains(text, "sending traces") || strings.Contains(d.text(), "trace_id") || !strings.Contains(text, "batch settled") {
			t.Errorf("it traces:\n%s", text)
		}
	})
}
