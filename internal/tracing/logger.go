package tracing

import (
	"github.com/go-logr/logr"
	"github.com/rs/zerolog"
)

// sink takes what OpenTelemetry's packages say about their settings. The values that they add are left out: headers have passwords.
type sink struct{ log zerolog.Logger }

func newLogger(log zerolog.Logger) logr.Logger { return logr.New(sink{log}) }

// Init is for logr.
func (sink) Init(logr.RuntimeInfo) {}

// Enabled lets warnings through, which have level 1.
func (sink) Enabled(level int) bool { return level <= 1 }

// Info tells of a warning.
func (s sink) Info(_ int, text string, _ ...any) {
	s.log.Warn().Str("reason", text).Msg("a setting of tracing")
}

// Error tells of a setting that could not be read.
func (s sink) Error(err error, text string, _ ...any) {
	s.log.Warn().AnErr("error", err).Str("reason", text).Msg("a setting of tracing is wrong, and not used")
}

// WithValues is for logr.
func (s sink) WithValues(...any) logr.LogSink { return s }

// WithName is for logr.
func (s sink) WithName(string) logr.LogSink { return s }
