package api_test

import (
	"net/http"
	"testing"

	"github.com/sluicebox/sluicebox/internal/api"
	"github.com/sluicebox/sluicebox/internal/testdoc"
)

// TestMetricsTable holds that docs/metrics.md names what /metrics shows, with type and labels, and nothing else.
func TestMetricsTable(t *testing.T) {
	t.Parallel()
	s := startOn(t, nowhere, api.Config{Environment: "test", OpenMetrics: true})
	s.do(t, http.MethodGet, "/livez", "")
	testdoc.Metrics(t, s.do(t, http.MethodGet, "/metrics", "").body, "The API")
}
