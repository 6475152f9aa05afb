package cli

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/signal"
	"strings"
	"syscall"
)

// Exit codes of all binaries. They are part of the contract: a supervisor restarts after some of them and not after
// others.
const (
	CodeClean     = 0 // done, or stopped by a signal
	CodeError     = 1 // anything else
	CodeSettings  = 2 // settings are wrong; starting again with the same ones is useless
	CodePreflight = 3 // a database is not as it must be, and somebody has to change that
	CodeFenced    = 4 // a successor took over
	CodeHalted    = 5 // halted to keep data safe; starting again would not be safe
	CodeDiffers   = 6 // an audit found events that are not the same in both databases
)

// Exit is an error that decides the exit code and tells the operator what to do.
type Exit struct {
	Code int    // one of the Code constants
	Err  error  // what happened; nil with CodeClean: nothing to tell
	Hint string // what to do about it, as one line without a full stop; may be empty
}

// Error returns what happened, without the hint.
func (e *Exit) Error() string {
	if e.Err == nil {
		return fmt.Sprintf("exit code %d", e.Code)
	}
	return e.Err.Error()
}

// Unwrap returns what happened.
func (e *Exit) Unwrap() error { return e.Err }

// Main runs a program and returns its exit code. SIGINT and SIGTERM cancel the context; run then has to come to its end by
// itself. A second signal ends the process at once.
//
// An error of run is printed to standard error, with its hint. The error of a cancelled context after a signal is the
// clean end that was asked for.
func Main(name string, run func(context.Context) error) (code int) {
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	signals := make(chan os.Signal, 1)
	signal.Notify(signals, syscall.SIGINT, syscall.SIGTERM)
	go func() {
		select {
		case <-signals:
		case <-ctx.Done():
		}
		// From here on a signal does what it does by default: kill. That has to be so before anybody sees the context
		// cancelled, which is why this is not signal.NotifyContext.
		signal.Stop(signals)
		cancel()
	}()

	err := run(ctx)
	if errors.Is(err, context.Canceled) && ctx.Err() != nil && !errors.As(err, new(*Exit)) {
		return CodeClean
	}
	return Report(os.Stderr, name, err)
}

// Report prints err and its hint, if it has one, and returns the exit code it stands for.
func Report(stderr io.Writer, name string, err error) (code int) {
	if err == nil {
		return CodeClean
	}
	code, hint := CodeError, ""
	if exit := new(Exit); errors.As(err, &exit) {
		code, hint = exit.Code, exit.Hint
		if exit.Err == nil {
			return code
		}
	}
	message := name + ": " + err.Error() + "\n"
	if hint != "" {
		message += strings.Repeat(" ", len(name)) + "  hint: " + hint + "\n"
	}
	_, _ = io.WriteString(stderr, message) // there is nowhere left to report that standard error is closed
	return code
}
