package check

import (
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"sigs.k8s.io/yaml"
)

// alert is a rule of deploy/prometheus/rules.
type alert struct {
	Alert, Expr, For    string
	Labels, Annotations map[string]string
}

// sample is what a test of deploy/prometheus/tests expects of an expression.
type sample struct {
	Expr       string
	ExpSamples []struct{ Labels string } `json:"exp_samples"`
}

func alerts(t *testing.T) (all []alert) {
	t.Helper()
	for _, path := range glob(t, "../prometheus/rules/*.yml") {
		var file struct {
			Groups []struct{ Rules []alert }
		}
		decode(t, path, &file)
		for _, group := range file.Groups {
			all = append(all, group.Rules...)
		}
	}
	return all
}

func TestAlerts(t *testing.T) {
	t.Parallel()
	runbook, err := os.ReadFile("../../docs/runbook.md")
	if err != nil {
		t.Fatal(err)
	}
	var sections []string
	for _, heading := range regexp.MustCompile(`(?m)^## (\w+)$`).FindAllStringSubmatch(string(runbook), -1) {
		sections = append(sections, heading[1])
	}
	var samples []sample
	for _, path := range glob(t, "../prometheus/tests/*.yml") {
		var file struct {
			Tests []struct {
				Samples []sample `json:"promql_expr_test"`
			}
		}
		decode(t, path, &file)
		for _, test := range file.Tests {
			samples = append(samples, test.Samples...)
		}
	}
	known := metrics(t)
	var names []string
	for _, a := range alerts(t) {
		names = append(names, a.Alert)
		t.Run(a.Alert+" "+a.Labels["severity"], func(t *testing.T) {
			t.Parallel()
			if !slices.Contains(sections, a.Alert) {
				t.Error("docs/runbook.md has no section for it")
			}
			if want := "/docs/runbook.md#" + strings.ToLower(a.Alert); !strings.HasSuffix(a.Annotations["runbook_url"], want) {
				t.Errorf("runbook_url %q does not end in %s", a.Annotations["runbook_url"], want)
			}
			if severity := a.Labels["severity"]; severity != "critical" && severity != "warning" {
				t.Errorf("severity %q", severity)
			}
			if a.Annotations["summary"] == "" || a.Annotations["description"] == "" {
				t.Errorf("no summary or no description: %v", a.Annotations)
			}
			known.check(t, a.Expr)
			a.tested(t, samples)
		})
	}
	for _, section := range sections {
		if !slices.Contains(names, section) {
			t.Errorf("docs/runbook.md has a section %s, and there is no such alert", section)
		}
	}
}

// tested fails unless there is a test in which the alert fires, with every label that its description uses, and one in which it does not.
func (a *alert) tested(t *testing.T, samples []sample) {
	t.Helper()
	fires, silent := false, false
	for _, s := range samples {
		if s.Expr != `ALERTS{alertname="`+a.Alert+`", alertstate="firing"}` {
			continue
		}
		silent = silent || len(s.ExpSamples) == 0
		for _, expected := range s.ExpSamples {
			if !strings.Contains(expected.Labels, `severity="`+a.Labels["severity"]+`"`) {
				continue
			}
			fires = true
			for _, used := range regexp.MustCompile(`\$labels\.(\w+)`).FindAllStringSubmatch(a.Annotations["description"], -1) {
				if !strings.Contains(expected.Labels, used[1]+`="`) {
					t.Errorf("its description uses the label %s, which %s lacks", used[1], expected.Labels)
				}
			}
		}
	}
	if !fires || !silent {
		t.Errorf("deploy/prometheus/tests: it fires in one: %t; it does not in another: %t", fires, silent)
	}
}

// decode reads a YAML file. Fields that the value lacks are left out.
func decode(t *testing.T, path string, value any) {
	t.Helper()
	text, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if err := yaml.Unmarshal(text, value); err != nil {
		t.Fatalf("%s: %v", path, err)
	}
}

// glob is every file that matches; there must be one.
func glob(t *testing.T, pattern string) []string {
	t.Helper()
	paths, err := filepath.Glob(pattern)
	if err != nil || len(paths) == 0 {
		t.Fatalf("%s: %d files, %v", pattern, len(paths), err)
	}
	return paths
}
