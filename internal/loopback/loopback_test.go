package loopback_test

import (
	"testing"

	"github.com/sluicebox/sluicebox/internal/loopback"
)

func TestHost(t *testing.T) {
	t.Parallel()
	for host, want := range map[string]bool{
		"localhost": true, "localhost:9000": true, "127.0.0.1": true, "127.9.9.9:80": true, "::1": true, "[::1]": true, "[::1]:9000": true,
		"[::ffff:127.0.0.1]:1": true,
		"":                     false, ":80": false, "0.0.0.0:80": false, "[::]:80": false, "10.0.0.1": false, "localhost.example.com": false, "db:5432": false, "/run/x": false,
	} {
		if got := loopback.Host(host); got != want {
			t.Errorf("%q: %t, want %t", host, got, want)
		}
	}
}
