package api_test

import (
	"net/http"
	"os"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/sluicebox/sluicebox/internal/api"
)

// TestMetricsTable holds that docs/metrics.md names what /metrics shows, with type and labels, and nothing else.
func TestMetricsTable(t *testing.T) {
	t.Parallel()
	s := startOn(t, nowhere, api.Config{Environment: "test", OpenMetrics: true})
	s.do(t, http.MethodGet, "/livez", "")
	text := s.do(t, http.MethodGet, "/metrics", "").body
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
		t.Fatal(err)
	}
	_, section, _ := strings.Cut(string(document), "\n## The API\n")
	section, _, _ = strings.Cut(section, "\n## ")
	var listed []string
	for line := range strings.Lines(section) {
		if cells := strings.Split(line, "|"); strings.HasPrefix(line, "| `") {
			listed = append(listed, strings.Trim(cells[1], "` ")+" "+strings.TrimSpace(cells[2])+" "+strings.TrimSpace(cells[3]))
		}
	}
	slices.Sort(shown)
	slices.Sort(listed)
	if diff := cmp.Diff(shown, listed); diff != "" {
		t.Errorf("-shown +listed: %s", diff)
	}
}
