package embedded

import (
	"errors"
	"fmt"
	"io"
	"os"
	"runtime"
	"unsafe"

	"github.com/creack/pty"
	"github.com/ebitengine/purego"
	"golang.org/x/sys/unix"
)

// lifelineFD is the descriptor of the pipe whose other end is the parent's: it ends when the parent wants the server to end,
// or has ended itself.
const lifelineFD = 3

// The library keeps pointers to its arguments, and the server ends with its terminal. What only C and descriptors refer to
// would be moved or closed by the garbage collector at some later time.
//
//nolint:gochecknoglobals // held for the life of the process
var (
	pinned           runtime.Pinner
	terminal, client *os.File // the two ends of the pseudo-terminal
)

// init turns this process into a ClickHouse server if its parent wants one.
//
// It has to be an init function. The server is this same executable started again, because the library takes over a process:
// it can't be unloaded, wants the main thread, and aborts when it is unhappy. That executable may be any test binary, whose
// main function is generated, so there is no main that could be asked to look first.
func init() {
	library, ok := os.LookupEnv(childVariable)
	if !ok {
		return
	}
	runtime.LockOSThread() // it is the main thread, on which init functions run
	if err := serve(library, os.Args); err != nil {
		fmt.Fprintln(os.Stderr, "sluicebox:", err)
		os.Exit(1) //nolint:forbidigo // main does not run in this process
	}
	os.Exit(0) //nolint:forbidigo // main does not run in this process
}

// listen is the script that makes a server of clickhouse-local. After it an interactive server waits at its prompt, and another
// one in block, which never ends.
const (
	listen = "SYSTEM START LISTEN TCP; SYSTEM START LISTEN HTTP"
	block  = "SELECT sleepEachRow(3) FROM system.numbers SETTINGS max_block_size = 1 FORMAT Null"
)

// serve is clickhouse-local with args and a script that listens, and returns when the lifeline has ended.
func serve(library string, args []string) error {
	// A crash of this server is part of the tests, and would leave some hundred megabytes each time.
	if err := unix.Setrlimit(unix.RLIMIT_CORE, &unix.Rlimit{}); err != nil {
		return fmt.Errorf("forbid core files: %w", err)
	}
	script, end := listen+"; "+block, func() { os.Exit(0) } //nolint:forbidigo // main does not run in this process
	if len(args) > 1 && args[1] == interactive {
		if err := openTerminal(); err != nil {
			return err
		}
		script, end = listen, func() { _ = terminal.Close() } // ends the prompt
	}
	go func() {
		_, _ = io.Copy(io.Discard, os.NewFile(lifelineFD, "lifeline"))
		end()
	}()

	handle, err := purego.Dlopen(library, purego.RTLD_NOW|purego.RTLD_LOCAL)
	if err != nil {
		return fmt.Errorf("load ClickHouse: %w", err)
	}
	var (
		setSignalHandlersEnabled func(enabled int32)
		queryCmdline             func(argc int32, argv **byte) uintptr
		resultError              func(result uintptr) string
	)
	purego.RegisterLibFunc(&setSignalHandlersEnabled, handle, "chdb_set_signal_handlers_enabled")
	purego.RegisterLibFunc(&queryCmdline, handle, "chdb_query_cmdline")
	purego.RegisterLibFunc(&resultError, handle, "chdb_result_error")

	// Its handlers would replace those of the Go runtime, and sleep for minutes after a crash.
	setSignalHandlersEnabled(0)

	args = append(args, "--query="+script)
	result := queryCmdline(int32(len(args)), argv(args)) //nolint:gosec // a handful of arguments
	if result == 0 {
		return errors.New("ClickHouse ended without a result")
	}
	if message := resultError(result); message != "" {
		return errors.New("ClickHouse ended: " + message)
	}
	return nil
}

// openTerminal makes a new pseudo-terminal descriptor 0. Without one, and --interactive, this build aborts as a whole when the
// thread of a connection throws, for which a wrong password is enough (ClickHouse issue 115666).
func openTerminal() error {
	var err error
	if terminal, client, err = pty.Open(); err != nil {
		return fmt.Errorf("open a pseudo-terminal for ClickHouse: %w", err)
	}
	if err := unix.Dup3(int(client.Fd()), 0, 0); err != nil {
		return fmt.Errorf("make a pseudo-terminal the input of ClickHouse: %w", err)
	}
	return nil
}

// argv is args as C wants them, NUL-terminated and pinned.
func argv(args []string) **byte {
	pointers := make([]*byte, len(args)+1)
	for i, arg := range args {
		text := append([]byte(arg), 0)
		pinned.Pin(unsafe.SliceData(text))
		pointers[i] = unsafe.SliceData(text)
	}
	pinned.Pin(unsafe.SliceData(pointers))
	return unsafe.SliceData(pointers)
}
