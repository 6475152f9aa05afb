package check

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"sync"
	"testing"
)

// programs is where both programs are, once a test has needed one.
//
//nolint:gochecknoglobals // built once a test binary, and removed at its end
var programs struct {
	once sync.Once
	dir  string
	err  error
}

func TestMain(m *testing.M) {
	code := m.Run()
	if err := os.RemoveAll(programs.dir); err != nil {
		fmt.Fprintln(os.Stderr, err)
	}
	os.Exit(code) //nolint:forbidigo // the main of a test binary
}

func buildPrograms() (dir string, err error) {
	if dir, err = os.MkdirTemp("", "deploy"); err != nil {
		return "", err
	}
	build := exec.CommandContext(context.Background(), "go", "build", "-o", dir, "./cmd/cdc", "./cmd/api")
	build.Dir = "../.."
	if out, err := build.CombinedOutput(); err != nil {
		return dir, fmt.Errorf("build the programs: %w: %s", err, out)
	}
	return dir, nil
}

// program is the path of a built program.
func program(t *testing.T, name string) string {
	t.Helper()
	programs.once.Do(func() { programs.dir, programs.err = buildPrograms() })
	if programs.err != nil {
		t.Fatal(programs.err)
	}
	return filepath.Join(programs.dir, name)
}

// checkSettings fails unless a command line is one of a program, and each variable a setting of it, or one of Go's runtime.
func checkSettings(t *testing.T, command, variables []string) {
	t.Helper()
	name := filepath.Base(command[0])
	if command[0] != "/usr/local/bin/"+name || name != "cdc" && name != "api" {
		t.Errorf("%q is none of our programs", command)
		return
	}
	help, err := exec.CommandContext(t.Context(), program(t, name), append(slices.Clone(command[1:]), "--help")...).CombinedOutput()
	if err != nil {
		t.Errorf("%q: %v: %s", command, err, help)
	}
	for _, variable := range variables {
		setting := regexp.MustCompile(`\b` + strings.TrimSuffix(variable, "_FILE") + `\b`)
		if variable != "GOMEMLIMIT" && !setting.Match(help) {
			t.Errorf("%q has no setting %s:\n%s", command, variable, help)
		}
	}
}
