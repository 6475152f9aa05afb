package check

import (
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
)

func TestSystemd(t *testing.T) {
	t.Parallel()
	for _, name := range []string{"cdc", "api"} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			text, err := os.ReadFile("../systemd/sluicebox-" + name + ".service")
			if err != nil {
				t.Fatal(err)
			}
			unit := string(text)
			credentials := map[string]bool{}
			for _, credential := range regexp.MustCompile(`(?m)^LoadCredential=([a-z-]+):/`).FindAllStringSubmatch(unit, -1) {
				credentials[credential[1]] = true
			}
			var variables []string
			for _, variable := range regexp.MustCompile(`(?m)^Environment=(\w+)=(.*)$`).FindAllStringSubmatch(unit, -1) {
				variables = append(variables, variable[1])
				if file, found := strings.CutPrefix(variable[2], "%d/"); found && !credentials[file] {
					t.Errorf("%s is %s, and no such credential is loaded", variable[1], variable[2])
				}
			}
			command := regexp.MustCompile(`(?m)^ExecStart=(.*)$`).FindStringSubmatch(unit)
			if command == nil {
				t.Fatal("no ExecStart")
			}
			checkSettings(t, strings.Fields(command[1]), variables)
			analyze(t, name, strings.Replace(unit, "/usr/local/bin/"+name, program(t, name), 1))
		})
	}
}

// analyze has systemd itself look at a unit: whether it understands it, and how much it leaves open.
func analyze(t *testing.T, name, unit string) {
	t.Helper()
	tool, err := exec.LookPath("systemd-analyze")
	if err != nil {
		if os.Getenv("CI") != "" {
			t.Fatal("systemd-analyze is missing: install systemd")
		}
		t.Skip("systemd-analyze is missing; the unit is not checked by systemd")
	}
	file := filepath.Join(t.TempDir(), "sluicebox-"+name+".service")
	if err := os.WriteFile(file, []byte(unit), 0o600); err != nil {
		t.Fatal(err)
	}
	// What it does not understand is a line of its output, and no error.
	if out, err := exec.CommandContext(t.Context(), tool, "verify", "--man=no", file).CombinedOutput(); err != nil || len(out) > 0 {
		t.Errorf("verify: %v: %s", err, out)
	}
	const exposure = "20" // 2.0 of 10: "OK"
	if out, err := exec.CommandContext(t.Context(), tool, "security", "--offline=true", "--threshold="+exposure, file).CombinedOutput(); err != nil {
		t.Errorf("security: %v: %s", err, out)
	}
}
