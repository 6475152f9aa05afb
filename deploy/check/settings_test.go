package check

import (
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

// programs builds both programs, once, and gives the folder they are in.
//
//nolint:gochecknoglobals // built once a test binary
var programs = sync.OnceValues(func() (string, error) {
	dir, err := os.MkdirTemp("", "deploy")
	if err != nil {
		return "", err
	}
	build := exec.Command("go", "build", "-o", dir, "./cmd/cdc", "./cmd/api")
	build.Dir = "../.."
	if out, err := build.CombinedOutput(); err != nil {
		return "", fmt.Errorf("build the programs: %w: %s", err, out)
	}
	return dir, nil
})

func TestMain(m *testing.M) {
	code := m.Run()
	if dir, err := programs(); err == nil {
		_ = os.RemoveAll(dir) // of the system's temporary folder
	}
	os.Exit(code) //nolint:forbidigo // the main of a test binary
}

// program is the path of a built program.
func program(t *testing.T, name string) string {
	t.Helper()
	dir, err := programs()
	if err != nil {
		t.Fatal(err)
	}
	return filepath.Join(dir, name)
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
