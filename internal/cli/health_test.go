package cli_test

import (
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"

	"github.com/sluicebox/sluicebox/internal/cli"
)

func TestHealth(t *testing.T) {
	t.Setenv("HTTP_PROXY", "http://127.0.0.1:1") // nothing listens there
	for name, test := range map[string]struct {
		status       int
		body         string
		stdout, fail string
	}{
		"a program that is ready says so":             {200, "streaming\n", "streaming\n", ""},
		"one that is not says why":                    {503, "paused: ClickHouse does not answer\n", "", "not ready: paused: ClickHouse does not answer"},
		"something else that listens there is no one": {404, "page not found", "", "not ready: page not found"},
		"an answer without end is cut":                {503, strings.Repeat("x", 1<<20), "", "not ready: " + strings.Repeat("x", 4<<10)},
	} {
		t.Run(name, func(t *testing.T) {
			server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
				if r.URL.Path != "/readyz" {
					t.Errorf("asked for %s", r.URL)
				}
				w.WriteHeader(test.status)
				_, _ = io.WriteString(w, test.body)
			}))
			defer server.Close()
			_, port, _ := strings.Cut(strings.TrimPrefix(server.URL, "http://"), ":")
			for _, addr := range []cli.Addr{cli.Addr("127.0.0.1:" + port), cli.Addr("0.0.0.0:" + port), cli.Addr(":" + port)} {
				var stdout strings.Builder
				err := cli.Health(t.Context(), addr, &stdout)
				if stdout.String() != test.stdout || (err == nil) != (test.fail == "") || err != nil && err.Error() != test.fail {
					t.Errorf("%s: printed %q, error %v", addr, stdout.String(), err)
				}
			}
		})
	}
	t.Run("nothing listens", func(t *testing.T) {
		err := cli.Health(t.Context(), "127.0.0.1:1", io.Discard)
		if err == nil || !strings.HasPrefix(err.Error(), "nothing answers on 127.0.0.1:1: ") {
			t.Errorf("error %v", err)
		}
	})
}
