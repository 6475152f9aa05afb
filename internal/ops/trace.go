package ops

import (
	"context"
	"sync"
	"time"

	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/codes"
	"go.opentelemetry.io/otel/propagation"
	semconv "go.opentelemetry.io/otel/semconv/v1.43.0"
	"go.opentelemetry.io/otel/trace"

	"github.com/sluicebox/sluicebox/internal/batch"
	"github.com/sluicebox/sluicebox/internal/pipeline"
	"github.com/sluicebox/sluicebox/outbox"
)

const (
	// mostLinks is how many requests a batch's span is linked to: a batch may have 50 000, and what shows traces shows some dozens.
	mostLinks = 32
	// mostLooks is how many events are looked at for them, so that a large batch of which hardly any is sampled is not held up.
	mostLooks = 1000
)

// Traced returns an observer that tells another one everything, and makes spans of what it is told. Without a tracer it is the other one.
//
//	deliver batch ──▶ links: the requests that wrote the batch's events, those that are sampled
//	├─ plan
//	├─ insert         one for each attempt
//	└─ settle
//
// They tell how much and how long, never what: no event, no name, no error's text, which may quote a value.
func Traced(observer pipeline.Observer, slot string, tracer trace.Tracer) pipeline.Observer {
	if tracer == nil {
		return observer
	}
	return &traced{Observer: observer, tracer: tracer, slot: slot, open: map[int64]trace.Span{}}
}

type traced struct {
	pipeline.Observer

	tracer trace.Tracer
	slot   string

	mu      sync.Mutex
	open    map[int64]trace.Span // of the batches that are under way, by their number: two or three
	writing trace.Span           // of the one that was planned last; nil: there is none
}

// Leads ends what the last session left: a batch that it has not settled is finished by the next one, as another span.
func (t *traced) Leads(epoch int64) {
	t.Observer.Leads(epoch)
	t.mu.Lock()
	defer t.mu.Unlock()
	for _, span := range t.open {
		span.SetStatus(codes.Error, "the session ended before the batch was settled; the next one finishes it")
		span.End()
	}
	clear(t.open)
	t.writing = nil
}

// Planned begins the span of a batch.
func (t *traced) Planned(b *batch.Batch) {
	t.Observer.Planned(b)
	_, span := t.tracer.Start(context.Background(), "deliver batch", trace.WithNewRoot(), trace.WithTimestamp(b.Began),
		trace.WithSpanKind(trace.SpanKindConsumer), trace.WithLinks(links(b)...), trace.WithAttributes(
			attribute.String("sluicebox.slot", t.slot), attribute.Int64("sluicebox.batch", b.Seq), attribute.Int("sluicebox.bytes", b.Bytes),
			attribute.String("sluicebox.sealed_by", string(b.SealedBy)), semconv.MessagingBatchMessageCount(len(b.IDs))))
	t.mu.Lock()
	defer t.mu.Unlock()
	t.writing = nil
	if !span.IsRecording() { // not sampled
		return
	}
	b.Trace = span.SpanContext().TraceID().String()
	t.open[b.Seq], t.writing = span, span
	if b.SealedBy != batch.ByRecovery { // that was planned by an earlier session
		t.step(span, "plan", time.Since(b.Began), semconv.DBSystemNamePostgreSQL).end()
	}
}

// Attempt adds an insert to the batch that was planned last.
func (t *traced) Attempt(outcome string, took time.Duration) {
	t.Observer.Attempt(outcome, took)
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.writing == nil {
		return
	}
	insert := t.step(t.writing, "insert", took, semconv.DBSystemNameClickHouse)
	if outcome != pipeline.Stored {
		insert.SetAttributes(semconv.ErrorTypeKey.String(outcome))
		insert.SetStatus(codes.Error, "")
	}
	insert.end()
}

// Settled ends the span of a batch.
func (t *traced) Settled(b *batch.Batch, took, settling time.Duration) {
	t.Observer.Settled(b, took, settling)
	t.mu.Lock()
	defer t.mu.Unlock()
	span := t.open[b.Seq]
	if span == nil {
		return
	}
	delete(t.open, b.Seq)
	t.step(span, "settle", settling, semconv.DBSystemNamePostgreSQL).end()
	span.SetAttributes(attribute.Int("sluicebox.quarantined", len(b.Rejected)))
	span.End()
}

// step is something that a batch has gone through, and that took until now.
type step struct {
	trace.Span

	ended time.Time
}

func (t *traced) step(of trace.Span, name string, took time.Duration, peer attribute.KeyValue) step {
	now := time.Now()
	_, span := t.tracer.Start(trace.ContextWithSpan(context.Background(), of), name, trace.WithTimestamp(now.Add(-took)),
		trace.WithSpanKind(trace.SpanKindClient), trace.WithAttributes(peer))
	return step{span, now}
}

func (s step) end() { s.End(trace.WithTimestamp(s.ended)) }

// links are the requests that wrote a batch's events, the first ones, each once. Of those that are not sampled nobody has a span.
func links(b *batch.Batch) (links []trace.Link) {
	seen, looks := map[string]struct{}{}, 0
	for _, rows := range [...][]outbox.Row{b.Rows, b.Rest} {
		for i := range rows {
			given := rows[i].TraceContext
			if given == "" {
				continue
			}
			if _, again := seen[given]; again {
				continue
			}
			ctx := propagation.TraceContext{}.Extract(context.Background(), propagation.MapCarrier{"traceparent": given})
			if request := trace.SpanContextFromContext(ctx); request.IsSampled() {
				seen[given] = struct{}{}
				links = append(links, trace.Link{SpanContext: request})
			}
			if looks++; looks == mostLooks || len(links) == mostLinks {
				return links
			}
		}
	}
	return links
}
