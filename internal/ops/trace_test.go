package ops_test

import (
	"fmt"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"go.opentelemetry.io/otel/codes"
	sdk "go.opentelemetry.io/otel/sdk/trace"
	"go.opentelemetry.io/otel/sdk/trace/tracetest"

	"github.com/sluicebox/sluicebox/internal/batch"
	"github.com/sluicebox/sluicebox/internal/cli"
	"github.com/sluicebox/sluicebox/internal/ops"
	"github.com/sluicebox/sluicebox/internal/pipeline"
	"github.com/sluicebox/sluicebox/outbox"
)

// traces observes with a recorder of spans.
func traces(t *testing.T, sampler sdk.Sampler) (pipeline.Observer, func() tracetest.SpanStubs) {
	t.Helper()
	recorder := tracetest.NewSpanRecorder()
	provider := sdk.NewTracerProvider(sdk.WithSampler(sampler), sdk.WithSpanProcessor(recorder))
	return ops.Traced(ops.NewMetrics(cli.Build{}), "slot", provider.Tracer("test")), func() tracetest.SpanStubs {
		return tracetest.SpanStubsFromReadOnlySpans(recorder.Ended())
	}
}

// context is the trace context of the i'th request.
func traceContext(i int, flags string) string {
	return fmt.Sprintf("00-4bf92f3577b34da6a3ce929d%08x-00f067aa0ba902b7-%s", i+1, flags)
}

// carrying is a batch of events with trace contexts.
func carrying(seq int64, contexts ...string) *batch.Batch {
	b := &batch.Batch{Seq: seq, SealedBy: batch.ByRows, Began: time.Now()}
	for i, c := range contexts {
		b.Rows = append(b.Rows, outbox.Row{ID: int64(i), TraceContext: c, Type: "canary", Environment: "canary", Context: []byte(`"canary"`)})
		b.IDs = append(b.IDs, int64(i))
	}
	return b
}

// wholeBatch is the span of the one batch.
func wholeBatch(t *testing.T, spans tracetest.SpanStubs) tracetest.SpanStub {
	t.Helper()
	const name = "deliver batch"
	var found []tracetest.SpanStub
	for _, span := range spans {
		if span.Name == name {
			found = append(found, span)
		}
	}
	if len(found) != 1 {
		t.Fatalf("%d spans are called %q, want 1", len(found), name)
	}
	return found[0]
}

func TestTraced(t *testing.T) {
	t.Parallel()
	t.Run("a batch is a span with its steps as they were", func(t *testing.T) {
		t.Parallel()
		synctest.Test(t, func(t *testing.T) {
			observer, ended := traces(t, sdk.AlwaysSample())
			start := time.Now()
			observer.Leads(1)
			b := carrying(7, traceContext(0, "01"))
			after(time.Second)
			observer.Planned(b)
			if b.Trace == "" {
				t.Error("the batch does not know its trace")
			}
			after(2 * time.Second)
			observer.Attempt(string(batch.Unknown), 2*time.Second)
			after(time.Second)
			observer.Attempt("ok", time.Second)
			b.Rows = nil
			after(5 * time.Second)
			observer.Settled(b, 9*time.Second, 3*time.Second)

			var told []string
			whole := wholeBatch(t, ended())
			for _, span := range ended() {
				if span.SpanContext.TraceID().String() != b.Trace {
					t.Errorf("%s is of another trace", span.Name)
				}
				if span.Name != whole.Name && span.Parent.SpanID() != whole.SpanContext.SpanID() {
					t.Errorf("%s is not a step of the batch", span.Name)
				}
				text := fmt.Sprintf("%s %v-%v %s", span.Name, span.StartTime.Sub(start), span.EndTime.Sub(start), span.Status.Code)
				for _, attribute := range span.Attributes {
					text += fmt.Sprintf(" %s=%v", attribute.Key, attribute.Value.AsInterface())
				}
				told = append(told, text)
			}
			want := []string{
				"plan 0s-1s Unset db.system.name=postgresql",
				"insert 1s-3s Error db.system.name=clickhouse error.type=unknown",
				"insert 3s-4s Unset db.system.name=clickhouse",
				"settle 6s-9s Unset db.system.name=postgresql",
				"deliver batch 0s-9s Unset sluicebox.slot=slot sluicebox.batch=7 sluicebox.bytes=0 sluicebox.sealed_by=rows " +
					"messaging.batch.message_count=1 sluicebox.quarantined=0",
			}
			if !slices.Equal(told, want) {
				t.Errorf("told\n%s\nwant\n%s", strings.Join(told, "\n"), strings.Join(want, "\n"))
			}
			if link := whole.Links; len(link) != 1 || link[0].SpanContext.TraceID().String() != traceContext(0, "01")[3:35] {
				t.Errorf("linked to %v", link)
			}
		})
	})
	t.Run("links are to requests that are sampled, each once, and to 32 at most", func(t *testing.T) {
		t.Parallel()
		observer, ended := traces(t, sdk.AlwaysSample())
		contexts := []string{"", "nonsense", traceContext(1000, "00")}
		for i := range 40 {
			contexts = append(contexts, traceContext(i, "01"), traceContext(i, "01"), traceContext(2000+i, "00"))
		}
		b := carrying(1, contexts...)
		b.Rows, b.Rest = b.Rows[:60], b.Rows[60:]
		observer.Planned(b)
		observer.Settled(b, 0, 0)
		links := wholeBatch(t, ended()).Links
		if len(links) != 32 {
			t.Fatalf("%d links, want 32", len(links))
		}
		for i, link := range links {
			if got, want := link.SpanContext.TraceID().String(), traceContext(i, "01")[3:35]; got != want || !link.SpanContext.IsSampled() {
				t.Errorf("link %d is to %s (sampled: %t), want %s", i, got, link.SpanContext.IsSampled(), want)
			}
		}
	})
	t.Run("few of a huge batch are looked at", func(t *testing.T) {
		t.Parallel()
		observer, ended := traces(t, sdk.AlwaysSample())
		contexts := make([]string, 0, 50_000)
		for i := range 49_999 {
			contexts = append(contexts, traceContext(i, "00"))
		}
		b := carrying(1, append(contexts, traceContext(50_000, "01"))...)
		observer.Planned(b)
		observer.Settled(b, 0, 0)
		if links := wholeBatch(t, ended()).Links; len(links) != 0 {
			t.Errorf("linked to %v", links)
		}
	})
	t.Run("what a session leaves ends with it, and is not told of the next batch's inserts", func(t *testing.T) {
		t.Parallel()
		observer, ended := traces(t, sdk.AlwaysSample())
		observer.Leads(1)
		b := carrying(1, "")
		observer.Planned(b)
		observer.Leads(0)
		if span := wholeBatch(t, ended()); span.Status.Code != codes.Error {
			t.Errorf("status %v", span.Status)
		}
		observer.Leads(2)
		observer.Attempt("ok", 0)
		observer.Settled(b, 0, 0)
		if spans := ended(); len(spans) != 2 { // the plan and the batch
			t.Errorf("spans: %v", spans)
		}
		b = carrying(1, "")
		b.SealedBy = batch.ByRecovery
		observer.Planned(b)
		observer.Attempt("ok", 0)
		observer.Settled(b, 0, 0)
		if spans := ended(); len(spans) != 5 || spans[2].Name != "insert" || spans[3].Name != "settle" {
			t.Errorf("spans: %v", spans)
		}
	})
	t.Run("a batch that is not sampled has no span, and names no trace", func(t *testing.T) {
		t.Parallel()
		observer, ended := traces(t, sdk.ParentBased(sdk.NeverSample()))
		b := carrying(1, traceContext(1, "01"))
		observer.Planned(b)
		observer.Attempt("ok", 0)
		observer.Settled(b, 0, 0)
		if spans := ended(); len(spans) > 0 || b.Trace != "" {
			t.Errorf("spans %v, trace %q", spans, b.Trace)
		}
	})
	t.Run("the other observer is told the same, and without a tracer there is none in between", func(t *testing.T) {
		t.Parallel()
		m := ops.NewMetrics(cli.Build{})
		if got := ops.Traced(m, "slot", nil); got != pipeline.Observer(m) {
			t.Errorf("without a tracer: %T", got)
		}
		observer := ops.Traced(m, "slot", sdk.NewTracerProvider().Tracer("test"))
		observer.Leads(3)
		b := carrying(1, "")
		observer.Planned(b)
		observer.Attempt("ok", time.Second)
		observer.Settled(b, time.Second, time.Second)
		want(t, m, "sluicebox_epoch", 3)
		want(t, m, `sluicebox_insert_attempts_total{outcome="ok"}`, 1)
		want(t, m, "sluicebox_events_delivered_total", 1)
	})
}

// BenchmarkPlanned is what a trace costs a batch of 50 000 events.
func BenchmarkPlanned(b *testing.B) {
	contexts := make([]string, 50_000)
	for i := range contexts {
		contexts[i] = traceContext(i, "01")
	}
	full := carrying(1, contexts...)
	observer := ops.Traced(ops.NewMetrics(cli.Build{}), "slot", sdk.NewTracerProvider().Tracer("test"))
	for b.Loop() {
		observer.Planned(full)
		observer.Attempt("ok", time.Second)
		observer.Settled(full, time.Second, time.Second)
	}
}
