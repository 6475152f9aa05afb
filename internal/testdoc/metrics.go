// Package testdoc holds documents against what programs do. It is for _test.go files only.
package testdoc

import (
	"os"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

// Metric is a row of a table of docs/metrics.md.
type Metric struct {
	Name, Type string
	Labels     []string
}

// Metrics fails the test unless a section of docs/metrics.md names what /metrics shows, with type and labels, and nothing else. Every family
// must have a sample in text. The test's package lies two folders below the repository's.
func Metrics(tb testing.TB, text, section string) {
	tb.Helper()
	var shown []Metric
	for _, family := range regexp.MustCompile(`(?m)^# TYPE (sluicebox_\S+) (\S+)$`).FindAllStringSubmatch(text, -1) {
		sample := regexp.MustCompile(`(?m)^` + family[1] + `(?:_bucket)?\{(.*)\} `).FindStringSubmatch(text)
		m := Metric{Name: family[1], Type: family[2]}
		for _, label := range regexp.MustCompile(`(\w+)="`).FindAllStringSubmatch(strings.Join(sample, ""), -1) {
			if label[1] != "le" && !slices.Contains(m.Labels, label[1]) {
				m.Labels = append(m.Labels, label[1])
			}
		}
		shown = append(shown, m)
	}
	listed := Listed(tb, section)
	byName := func(a, b Metric) int { return strings.Compare(a.Name, b.Name) }
	slices.SortFunc(shown, byName)
	slices.SortFunc(listed, byName)
	if diff := cmp.Diff(shown, listed); diff != "" {
		tb.Errorf("-shown +listed: %s", diff)
	}
}

// Listed is what a section of docs/metrics.md names. The test's package lies two folders below the repository's.
func Listed(tb testing.TB, section string) (listed []Metric) {
	tb.Helper()
	document, err := os.ReadFile("../../docs/metrics.md")
	if err != nil {
		tb.Fatal(err)
	}
	_, table, _ := strings.Cut(string(document), "\n## "+section+"\n")
	table, _, _ = strings.Cut(table, "\n## ")
	for line := range strings.Lines(table) {
		if !strings.HasPrefix(line, "| `") {
			continue
		}
		cells := strings.Split(line, "|")
		m := Metric{Name: strings.Trim(cells[1], "` "), Type: strings.TrimSpace(cells[2])}
		for _, label := range regexp.MustCompile("`(\\w+)`").FindAllStringSubmatch(cells[3], -1) {
			m.Labels = append(m.Labels, label[1])
		}
		listed = append(listed, m)
	}
	if len(listed) == 0 {
		tb.Fatalf("docs/metrics.md lists nothing under %q", section)
	}
	return listed
}
