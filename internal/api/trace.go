package api

import (
	"context"
	"net/http"

	"go.opentelemetry.io/otel/codes"
	"go.opentelemetry.io/otel/propagation"
	semconv "go.opentelemetry.io/otel/semconv/v1.43.0"
	"go.opentelemetry.io/otel/trace"

	"github.com/sluicebox/sluicebox/outbox"
)

// startSpan begins the span of a request, within the trace that the client names. It is not otelhttp's, which would tell paths and addresses
// of clients: those are personal data.
func startSpan(r *http.Request, tracer trace.Tracer) (*http.Request, trace.Span) {
	ctx := propagation.TraceContext{}.Extract(r.Context(), propagation.HeaderCarrier(r.Header))
	method := r.Method
	if methodLabel(method) != method {
		method = "_OTHER" // semconv's word for what it does not know
	}
	ctx, span := tracer.Start(ctx, method, trace.WithSpanKind(trace.SpanKindServer),
		trace.WithAttributes(semconv.HTTPRequestMethodKey.String(method)))
	return r.WithContext(ctx), span
}

// endSpan ends it. The route is known only now: the span begins before the router looks.
func endSpan(span trace.Span, method, route string, status int) {
	if !span.IsRecording() {
		return
	}
	if route != noRoute {
		span.SetName(methodLabel(method) + " " + route)
		span.SetAttributes(semconv.HTTPRoute(route))
	}
	span.SetAttributes(semconv.HTTPResponseStatusCode(status))
	if status >= http.StatusInternalServerError {
		span.SetStatus(codes.Error, "")
	}
	span.End()
}

// traceID is the trace that a request belongs to, whether it is recorded here or not; empty: none.
func traceID(r *http.Request) string {
	if span := trace.SpanContextFromContext(r.Context()); span.IsValid() {
		return span.TraceID().String()
	}
	const from, to = len("00-"), len("00-4bf92f3577b34da6a3ce929d0e0e4736")
	if given := r.Header.Get("traceparent"); outbox.ValidTraceContext(given) {
		return given[from:to]
	}
	return ""
}

// traceContext is what an event keeps: the span of the request that caused it, or what the client gave if there is none.
func traceContext(ctx context.Context, given string) string {
	if !trace.SpanContextFromContext(ctx).IsValid() {
		return given
	}
	carrier := propagation.MapCarrier{}
	propagation.TraceContext{}.Inject(ctx, carrier)
	return carrier.Get("traceparent")
}
