package cli

import (
	"io"
	"os"
	"time"

	"github.com/rs/zerolog"
	"golang.org/x/term"
)

// timeFormat is RFC 3339 with milliseconds: what log stores read as it is.
const timeFormat = "2006-01-02T15:04:05.000Z07:00"

// Log are the settings of logging, the same in all binaries. Embed it in a grammar.
type Log struct {
	LogLevel  string `env:"LOG_LEVEL"  enum:"debug,info,warn,error" default:"info" help:"Least level that is logged."`
	LogFormat string `env:"LOG_FORMAT" enum:"json,console"          default:"json" help:"json for machines, console for people."`
}

// Logger returns a logger that writes to w, by custom standard error, one line an event. Times are in UTC, in
// milliseconds. Only a terminal gets colours, and only in format console, unless NO_COLOR is set.
func (l Log) Logger(w io.Writer) zerolog.Logger { return l.on(l.format(w)) }

// FoldingLogger is Logger for a program that tries again and again: an error that repeats is logged at once, and then at growing distances,
// with the number of times that it was left out in the field folded. Errors that differ in numbers alone, such as ports, are the same.
func (l Log) FoldingLogger(w io.Writer) zerolog.Logger { return l.on(newFold(l.format(w))) }

// format is where lines go in the chosen format.
func (l Log) format(w io.Writer) io.Writer {
	if l.LogFormat != "console" {
		return w
	}
	file, ok := w.(*os.File)
	return zerolog.ConsoleWriter{
		Out:             w,
		NoColor:         !ok || !term.IsTerminal(int(file.Fd())),
		FormatTimestamp: clock,
	}
}

func (l Log) on(w io.Writer) zerolog.Logger {
	level, err := zerolog.ParseLevel(l.LogLevel)
	if err != nil {
		level = zerolog.InfoLevel // the enum tag lets no other level through
	}
	// A hook and not Timestamp(), whose format is a global variable of zerolog.
	return zerolog.New(w).Level(level).Hook(zerolog.HookFunc(func(event *zerolog.Event, _ zerolog.Level, _ string) {
		event.Str(zerolog.TimestampFieldName, time.Now().UTC().Format(timeFormat))
	}))
}

// clock leaves the time of day of a time stamp, which is enough for a person who is watching.
func clock(stamp any) string {
	text, ok := stamp.(string)
	if t, err := time.Parse(timeFormat, text); ok && err == nil {
		return t.Format("15:04:05.000")
	}
	return text
}
