package main

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"
)

// TestMain lets the test program be the program, so that exit codes and signals are the real ones.
func TestMain(m *testing.M) {
	if os.Getenv("RUN_MAIN") != "" {
		main()
	}
	m.Run()
}

func program(t *testing.T, environ []string, args ...string) *exec.Cmd {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	t.Cleanup(cancel)
	cmd := exec.CommandContext(ctx, os.Args[0], args...)
	cmd.Env = append([]string{"RUN_MAIN=1"}, environ...)
	return cmd
}

// nowhere is a database that refuses connections: nothing listens on port 1.
const nowhere = "DATABASE_URL=postgres://user:canary@127.0.0.1:1/db"

func TestExitCodes(t *testing.T) {
	t.Parallel()
	taken, err := new(net.ListenConfig).Listen(t.Context(), "tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = taken.Close() }()
	for name, test := range map[string]struct {
		args, environ []string
		code          int
		stderr        []string
	}{
		"bad settings are all listed": {
			nil,
			[]string{"API_ADR=x", "API_ADDR=:80", "LOG_LEVEL=loud", "CDC_NONSENSE=1"},
			2,
			[]string{"API_ADR: unknown setting, did you mean API_ADDR?", "LOG_LEVEL: ", "DATABASE_URL: required", "API_ADDR: not a loopback address"},
		},
		"a taken port is told with the setting that chooses another": {
			[]string{"--addr", taken.Addr().String()}, []string{nowhere}, 1, []string{"address already in use", "hint: API_ADDR"},
		},
	} {
		t.Run(name, func(t *testing.T) {
			cmd := program(t, test.environ, test.args...)
			var stderr bytes.Buffer
			cmd.Stderr = &stderr
			_ = cmd.Run()
			if code := cmd.ProcessState.ExitCode(); code != test.code {
				t.Errorf("exit code %d, want %d", code, test.code)
			}
			for _, want := range test.stderr {
				if !strings.Contains(stderr.String(), want) {
					t.Errorf("no %q in\n%s", want, stderr.String())
				}
			}
			if text := stderr.String(); strings.Contains(text, "canary") || strings.Contains(text, "goroutine ") {
				t.Errorf("a secret or a stack trace in\n%s", text)
			}
		})
	}
}

func TestASignalIsACleanEnd(t *testing.T) {
	t.Parallel()
	cmd := program(t, []string{nowhere, "API_ADDR=127.0.0.1:0"})
	stderr, err := cmd.StderrPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	lines := bufio.NewScanner(stderr)
	for lines.Scan() {
		if strings.Contains(lines.Text(), `"serving"`) {
			var line struct{ Addr string }
			if err := json.Unmarshal(lines.Bytes(), &line); err != nil {
				t.Error(err)
			}
			health := program(t, nil, "health", "--addr="+line.Addr)
			if out, err := health.CombinedOutput(); err == nil || !strings.Contains(string(out), "Postgres does not answer") {
				t.Errorf("health of a service without a database: error %v, %s", err, out)
			}
			if err := cmd.Process.Signal(syscall.SIGTERM); err != nil {
				t.Error(err)
			}
		}
	}
	if err := cmd.Wait(); err != nil {
		t.Error(err)
	}
}

// TestSystemd holds that a unit of Type=notify is told when the service serves, that it lives, and when it stops.
func TestSystemd(t *testing.T) {
	t.Parallel()
	path := filepath.Join(t.TempDir(), "notify")
	socket, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Name: path, Net: "unixgram"})
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = socket.Close() }()
	cmd := program(t, []string{nowhere, "API_ADDR=127.0.0.1:0", "NOTIFY_SOCKET=" + path, "WATCHDOG_USEC=300000"})
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	read := func() string {
		if err := socket.SetReadDeadline(time.Now().Add(time.Minute)); err != nil {
			t.Fatal(err)
		}
		message := make([]byte, 1024)
		n, err := socket.Read(message)
		if err != nil {
			t.Fatal(err)
		}
		return string(message[:n])
	}
	for _, want := range []string{"WATCHDOG=1\nREADY=1", "WATCHDOG=1", "WATCHDOG=1"} {
		if got := read(); got != want {
			t.Errorf("told %q, want %q", got, want)
		}
	}
	if err := cmd.Process.Signal(syscall.SIGTERM); err != nil {
		t.Fatal(err)
	}
	last := "WATCHDOG=1"
	for last == "WATCHDOG=1" { // told meanwhile
		last = read()
	}
	if last != "STOPPING=1" {
		t.Errorf("told %q, want STOPPING=1", last)
	}
	if err := cmd.Wait(); err != nil {
		t.Error(err)
	}
}
