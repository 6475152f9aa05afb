package cli_test

import (
	"bufio"
	"bytes"
	"context"
	"crypto/x509"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"strings"
	"syscall"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/sluicebox/sluicebox/internal/cli"
)

// TestMain lets the test program stand in for a binary, so that signals and exit codes are the real ones.
func TestMain(m *testing.M) {
	if mode := os.Getenv("CLI_TEST_MODE"); mode != "" {
		os.Exit(cli.Main("prog", func(ctx context.Context) error { return stand(ctx, mode) })) //nolint:forbidigo // it is a main
	}
	goleak.VerifyTestMain(m)
}

func stand(ctx context.Context, mode string) error {
	switch mode {
	case "fenced":
		return fmt.Errorf("deliver: %w", &cli.Exit{Code: cli.CodeFenced, Err: errors.New("a successor took over"), Hint: "nothing to do"})
	case "error":
		return errors.New("it broke")
	case "clean":
		return nil
	case "roots":
		pool, err := x509.SystemCertPool()
		if err == nil && pool.Equal(x509.NewCertPool()) {
			err = errors.New("no authority is trusted")
		}
		return err
	case "internal cancel":
		return fmt.Errorf("read: %w", context.Canceled)
	}
	_, _ = fmt.Fprintln(os.Stdout, "ready")
	<-ctx.Done()
	switch mode {
	case "obey":
		return fmt.Errorf("serve: %w", ctx.Err())
	case "lose":
		return errors.New("drain: time is up")
	default: // hang
		_, _ = fmt.Fprintln(os.Stdout, "stopping")
		select {}
	}
}

func TestMainExitCode(t *testing.T) {
	t.Parallel()
	for mode, want := range map[string]struct {
		code   int
		stderr string
	}{
		"clean":           {0, ""},
		"error":           {1, "prog: it broke\n"},
		"internal cancel": {1, "prog: read: context canceled\n"},
		"fenced":          {4, "prog: deliver: a successor took over\n      hint: nothing to do\n"},
	} {
		t.Run(mode, func(t *testing.T) {
			t.Parallel()
			cmd := exec.CommandContext(t.Context(), os.Args[0])
			cmd.Env = append(os.Environ(), "CLI_TEST_MODE="+mode)
			var stderr bytes.Buffer
			cmd.Stderr = &stderr
			_ = cmd.Run()
			if code := cmd.ProcessState.ExitCode(); code != want.code || stderr.String() != want.stderr {
				t.Errorf("exit code %d, standard error %q; want %d, %q", code, stderr.String(), want.code, want.stderr)
			}
		})
	}
}

func TestMainSignals(t *testing.T) {
	t.Parallel()
	for name, test := range map[string]struct {
		mode    string
		signals []os.Signal
		code    int // -1: ended by the signal
	}{
		"SIGTERM is a clean end":             {"obey", []os.Signal{syscall.SIGTERM}, 0},
		"SIGINT is a clean end":              {"obey", []os.Signal{syscall.SIGINT}, 0},
		"an error after a signal is told":    {"lose", []os.Signal{syscall.SIGTERM}, 1},
		"a second signal ends it at once":    {"hang", []os.Signal{syscall.SIGTERM, syscall.SIGTERM}, -1},
		"a second, other signal does so too": {"hang", []os.Signal{syscall.SIGTERM, syscall.SIGINT}, -1},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
			defer cancel()
			cmd := exec.CommandContext(ctx, os.Args[0])
			cmd.Env = append(os.Environ(), "CLI_TEST_MODE="+test.mode)
			stdout, err := cmd.StdoutPipe()
			if err != nil {
				t.Fatal(err)
			}
			if err := cmd.Start(); err != nil {
				t.Fatal(err)
			}
			lines := bufio.NewScanner(stdout)
			for _, signal := range test.signals {
				lines.Scan() // ready, then stopping
				if err := cmd.Process.Signal(signal); err != nil {
					t.Error(err)
				}
			}
			_ = cmd.Wait()
			if code := cmd.ProcessState.ExitCode(); code != test.code {
				t.Errorf("exit code %d, want %d", code, test.code)
			}
		})
	}
}

func TestReportHasNoStackTrace(t *testing.T) {
	t.Parallel()
	var out strings.Builder
	code := cli.Report(&out, "api", &cli.Exit{Code: cli.CodePreflight, Err: errors.New("no table users"), Hint: "run cdc migrate"})
	if want := "api: no table users\n     hint: run cdc migrate\n"; code != 3 || out.String() != want {
		t.Errorf("exit code %d, report %q", code, out.String())
	}
}

func TestTLSWorksOnASystemWithoutAuthorities(t *testing.T) {
	t.Parallel()
	cmd := exec.CommandContext(t.Context(), os.Args[0])
	cmd.Env = append(os.Environ(), "CLI_TEST_MODE=roots", "SSL_CERT_FILE=/nowhere", "SSL_CERT_DIR=/nowhere")
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Errorf("%v: %s", err, out)
	}
}
