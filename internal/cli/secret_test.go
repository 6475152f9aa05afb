package cli_test

import (
	"bytes"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
)

// TestSecretsInTheWrongPlace gives a URL with a password where something else belongs: the message doesn't repeat it.
func TestSecretsInTheWrongPlace(t *testing.T) {
	t.Parallel()
	for _, wrong := range []string{
		"postgres://user:p@ssw0rd@host/db", "postgres://user:pa/ssw0rd@host/db", "host=h password='pa ssw0rd' user=x", "host=h password = ssw0rd",
	} {
		for _, c := range []struct{ args, environ []string }{
			{[]string{"run", wrong}, nil},
			{[]string{"run", "--log-level=" + wrong}, nil},
			{[]string{"run", "--max-rows=" + wrong}, nil},
			{[]string{"run"}, []string{"CDC_MAX_ROWS=" + wrong}},
			{[]string{"run"}, []string{"LOG_LEVEL=" + wrong}},
			{[]string{"run"}, []string{"CDC_ADMIN_ADDR=" + wrong}},
		} {
			if _, _, err := parse(t, c.args, append(c.environ, "DATABASE_URL=postgres://h/db")); err == nil || strings.Contains(err.Error(), "ssw0rd") {
				t.Errorf("%q %q: %v", c.args, c.environ, err)
			}
		}
	}
}

// TestSecretPipe has a secret without an end.
func TestSecretPipe(t *testing.T) {
	t.Parallel()
	path := filepath.Join(t.TempDir(), "pipe")
	if err := syscall.Mkfifo(path, 0o600); err != nil {
		t.Fatal(err)
	}
	go func() { _ = os.WriteFile(path, bytes.Repeat([]byte("x"), 1<<20), 0o600) }()
	if s, _, err := parse(t, []string{"run"}, []string{"DATABASE_URL_FILE=" + path}); err == nil {
		t.Errorf("a secret of %d bytes is taken", len(string(s.DatabaseURL)))
	}
}
