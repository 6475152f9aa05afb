package ops_test

import (
	"context"
	"io"
	"net"
	"net/http"
	"testing"

	"go.uber.org/goleak"

	"github.com/sluicebox/sluicebox/internal/cli"
	"github.com/sluicebox/sluicebox/internal/ops"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// TestServe holds that the server ends with its context, an idle connection open or not, and leaves nothing behind.
func TestServe(t *testing.T) {
	t.Parallel()
	listener, err := new(net.ListenConfig).Listen(t.Context(), "tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	ctx, stop := context.WithCancel(t.Context())
	served := make(chan error, 1)
	go func() { served <- ops.Serve(ctx, listener, ops.NewMetrics(cli.Build{}).Handler()) }()
	req, err := http.NewRequestWithContext(t.Context(), http.MethodGet, "http://"+listener.Addr().String()+"/livez", nil)
	if err != nil {
		t.Fatal(err)
	}
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := io.Copy(io.Discard, resp.Body); err != nil || resp.StatusCode != http.StatusOK {
		t.Errorf("/livez: %d, %v", resp.StatusCode, err)
	}
	_ = resp.Body.Close()
	stop()
	if err := <-served; err != nil {
		t.Errorf("ended with %v", err)
	}
}
