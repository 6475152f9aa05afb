// Package tracing sends spans to an OpenTelemetry collector, over OTLP/HTTP, if the standard variables name one. It is a convenience: nothing
// about it may slow a program down, stop it, or keep it from starting.
//
//	OTEL_EXPORTER_OTLP_ENDPOINT, OTEL_EXPORTER_OTLP_TRACES_ENDPOINT   where the collector is; without one of them tracing is off
//	OTEL_EXPORTER_OTLP_HEADERS, …_PROTOCOL, …_TIMEOUT, …_CERTIFICATE  how to speak to it
//	OTEL_TRACES_SAMPLER, OTEL_TRACES_SAMPLER_ARG                      which traces are recorded, decided at their first span
//	OTEL_SERVICE_NAME, OTEL_RESOURCE_ATTRIBUTES                       what the program calls itself
//	OTEL_BSP_MAX_QUEUE_SIZE, …                                        how much may wait; what is more is dropped
//	OTEL_SDK_DISABLED=true, OTEL_TRACES_EXPORTER=none                 off, whatever else is set
//
// They are read by OpenTelemetry's own packages, and are the same for each program.
package tracing

import (
	"context"
	"errors"
	"fmt"
	"net/url"
	"os"
	"strings"
	"time"

	"github.com/rs/zerolog"
	"go.opentelemetry.io/otel"
	"go.opentelemetry.io/otel/exporters/otlp/otlptrace/otlptracehttp"
	"go.opentelemetry.io/otel/sdk/resource"
	sdk "go.opentelemetry.io/otel/sdk/trace"
	semconv "go.opentelemetry.io/otel/semconv/v1.43.0"
	"go.opentelemetry.io/otel/trace"

	"github.com/sluicebox/sluicebox/internal/cli"
)

// stopTimeout bounds the sending of what is left. A program that has done its work must not wait for a collector that is down.
const stopTimeout = 3 * time.Second

// Tracing makes spans and sends them. Make one with [Start].
type Tracing struct {
	provider *sdk.TracerProvider // nil: it is off
}

// Start begins to send the spans of a program, such as sluicebox-api. The log is told of trouble, again and again as long as it lasts; it
// should fold repeated lines. A setting that is wrong switches tracing off, and is told of.
func Start(ctx context.Context, service string, log zerolog.Logger) *Tracing {
	target, err := endpoint(os.Getenv)
	switch {
	case err != nil:
		log.Warn().Err(err).Msg("tracing is off")
		return &Tracing{}
	case target == "":
		return &Tracing{}
	}
	report(log)
	exporter, err := otlptracehttp.New(ctx)
	if err != nil {
		log.Warn().Err(err).Msg("tracing is off")
		return &Tracing{}
	}
	// What comes later wins: the operator's words over ours. No detector of processes: a command line may hold a password.
	self, err := resource.New(ctx, resource.WithTelemetrySDK(), resource.WithHost(), resource.WithAttributes(
		semconv.ServiceName(service), semconv.ServiceVersion(cli.ReadBuild().Version),
	), resource.WithFromEnv())
	if err != nil { // the rest of it is there
		log.Warn().Err(err).Msg("traces lack some of what tells which program they are from")
	}
	log.Info().Str("collector", target).Msg("sending traces")
	return &Tracing{provider: sdk.NewTracerProvider(sdk.WithBatcher(exporter), sdk.WithResource(self))}
}

// Tracer makes spans; nil: tracing is off.
func (t *Tracing) Tracer() trace.Tracer {
	if t.provider == nil {
		return nil
	}
	return t.provider.Tracer("github.com/sluicebox/sluicebox")
}

// Stop sends what is left, within three seconds. What can't be sent by then is lost.
func (t *Tracing) Stop(ctx context.Context) {
	if t.provider == nil {
		return
	}
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), stopTimeout)
	defer cancel()
	if err := t.provider.Shutdown(ctx); err != nil {
		otel.Handle(fmt.Errorf("send the last spans: %w", err))
	}
}

// endpoint is the collector, without what may be secret in its URL; empty: there is none.
func endpoint(getenv func(string) string) (string, error) {
	value := func(names ...string) (name, value string) {
		for _, name = range names {
			if value = strings.TrimSpace(getenv(name)); value != "" {
				break
			}
		}
		return name, value
	}
	name, address := value("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "OTEL_EXPORTER_OTLP_ENDPOINT")
	_, exporter := value("OTEL_TRACES_EXPORTER")
	_, disabled := value("OTEL_SDK_DISABLED")
	if address == "" || exporter == "none" || strings.EqualFold(disabled, "true") {
		return "", nil
	}
	target, err := url.Parse(address)
	if err != nil || target.Host == "" || target.Scheme != "http" && target.Scheme != "https" {
		return "", fmt.Errorf("%s: not a URL such as http://collector:4318", name)
	}
	if target.User != nil {
		return "", fmt.Errorf("%s: has a user, which would not be sent; put it into OTEL_EXPORTER_OTLP_HEADERS", name)
	}
	if name, protocol := value("OTEL_EXPORTER_OTLP_TRACES_PROTOCOL", "OTEL_EXPORTER_OTLP_PROTOCOL"); protocol == "grpc" {
		return "", fmt.Errorf("%s: grpc is not spoken; use http/protobuf, which collectors take on port 4318", name)
	}
	return target.Scheme + "://" + target.Host, nil
}

// report has OpenTelemetry tell its troubles to a log. It knows one place for all of a process.
func report(log zerolog.Logger) {
	otel.SetErrorHandler(otel.ErrorHandlerFunc(func(err error) {
		log.Warn().Err(brief(err)).Msg("traces are not sent")
	}))
	otel.SetLogger(newLogger(log))
}

// brief keeps what a collector answers from filling the log.
func brief(err error) error {
	const longest = 300
	if text := err.Error(); len(text) > longest {
		return errors.New(strings.ToValidUTF8(text[:longest], "") + "…")
	}
	return err
}
