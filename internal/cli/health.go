package cli

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strings"
	"time"
)

const (
	// healthTimeout is above the 2 s that the API gives its database to answer, and below the time-out of common probes.
	healthTimeout = 4 * time.Second
	// maxHealth is the longest answer, in bytes, that is repeated. A reason is one line.
	maxHealth = 4 << 10
)

// Health asks the program that listens on an address of this machine whether it is ready, and prints what it says: the health check
// of a container that has no shell. Dialling the address of all interfaces reaches
// this machine.
//
// Its error says in words why the program is not ready.
func Health(ctx context.Context, addr Addr, stdout io.Writer) error {
	ctx, cancel := context.WithTimeout(ctx, healthTimeout)
	defer cancel()
	request, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://"+string(addr)+"/readyz", nil)
	if err != nil {
		return fmt.Errorf("ask %s: %w", addr, err)
	}
	// A proxy of the environment is for the world outside, and a second request will not follow.
	client := http.Client{Transport: &http.Transport{DisableKeepAlives: true}}
	response, err := client.Do(request)
	if err != nil {
		return &Exit{Code: CodeError, Err: fmt.Errorf("nothing answers on %s: %w", addr, err), Hint: "is the program running, with this address?"}
	}
	defer func() { _ = response.Body.Close() }()
	body, err := io.ReadAll(io.LimitReader(response.Body, maxHealth))
	if err != nil {
		return fmt.Errorf("read the answer of %s: %w", addr, err)
	}
	said := strings.TrimSpace(string(body))
	if response.StatusCode != http.StatusOK {
		return errors.New("not ready: " + said)
	}
	_, err = fmt.Fprintln(stdout, said)
	return err
}
