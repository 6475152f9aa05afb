package embedded

import (
	"context"
	"crypto/rand"
	"errors"
	mathrand "math/rand/v2"
	"net"
	"os"
	"strconv"
	"strings"
)

// Ports are taken from between lowestPort and the range from which the kernel gives ports to outgoing connections. A port of
// that range could be given away while its server restarts: to somebody's connection, or to the very client that tries to
// connect to it, which then talks to itself.
const (
	lowestPort     = 15000
	ephemeralFile  = "/proc/sys/net/ipv4/ip_local_port_range"
	ephemeralUsual = 32768
	portAttempts   = 200
	startAttempts  = 5 // another process may take the port between the look and the server's start
	loopback       = "127.0.0.1"
)

// freePort finds a port on which nothing listens.
func freePort(ctx context.Context) (int, error) {
	highest := ephemeralUsual
	if data, err := os.ReadFile(ephemeralFile); err == nil {
		if fields := strings.Fields(string(data)); len(fields) == 2 {
			if low, err := strconv.Atoi(fields[0]); err == nil && low > lowestPort+1000 {
				highest = low
			}
		}
	}
	for range portAttempts {
		port := lowestPort + mathrand.IntN(highest-lowestPort) //nolint:gosec // no secret
		if portFree(ctx, port) {
			return port, nil
		}
	}
	return 0, errors.New("find a free port: none")
}

func portFree(ctx context.Context, port int) bool {
	var config net.ListenConfig
	listener, err := config.Listen(ctx, "tcp", address(port))
	if err != nil {
		return false
	}
	_ = listener.Close()
	return true
}

func address(port int) string { return net.JoinHostPort(loopback, strconv.Itoa(port)) }

func newPassword() string { return rand.Text() }

// portOr is the wanted port, or a free one for 0.
func portOr(ctx context.Context, wanted int) (int, error) {
	if wanted != 0 {
		return wanted, nil
	}
	return freePort(ctx)
}
