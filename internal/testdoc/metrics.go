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

// Metrics fails the test unless a section of docs/metrics.md names what /metrics shows, with type and labels, and nothing else. Every family
// must have a sample in text. The test's package lies two folders below the module's.
func Metrics(tb testing.TB, text, section string) {
	tb.Helper()
	var shown []string
	for _, family := range regexp.MustCompile(`(?m)^# TYPE (sluicebox_\S+) (\S+)$`).FindAllStringSubmatch(text, -1) {
		sample := regexp.MustCompile(`(?m)^` + family[1] + `(?:_bucket)?\{(.*)\} `).FindStringSubmatch(text)
		var labels []string
		for _, label := range regexp.MustCompile(`(\w+)="`).FindAllStringSubmatch(strings.Join(sample, ""), -1) {
			if label[1] != "le" && !slices.Contains(labels, "`"+label[1]+"`") {
				labels = append(labels, "`"+label[1]+"`")
			}
		}
		shown = append(shown, family[1]+" "+family[2]+" "+strings.Join(labels, ", "))
	}
	document, err := os.ReadFile("../../docs/metrics.md")
	if err != nil {
		tb.Fatal(err)
	}
	_, table, _ := strings.Cut(string(document), "\n## "+section+"\n")
	table, _, _ = strings.Cut(table, "\n## ")
	var listed []string
	for line := range strings.Lines(table) {
		if cells := strings.Split(line, "|"); strings.HasPrefix(line, "| `") {
			listed = append(listed, strings.Trim(cells[1], "` ")+" "+strings.TrimSpace(cells[2])+" "+strings.TrimSpace(cells[3]))
		}
	}
	slices.Sort(shown)
	slices.Sort(listed)
	if diff := cmp.Diff(shown, listed); diff != "" {
		tb.Errorf("-shown +listed: %s", diff)
	}
}
