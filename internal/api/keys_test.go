package api

import (
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/rs/zerolog"

	"github.com/sluicebox/sluicebox/internal/cli"
)

// keysFrom is the setting of a service whose keys are in a file.
func keysFrom(t *testing.T, path string) cli.Credential {
	t.Helper()
	var settings Settings
	program := cli.Program{Name: "api", Prefix: "API_", Args: []string{}, Environ: []string{"DATABASE_URL=postgres://h/db", "API_KEYS_FILE=" + path}}
	if _, err := program.Parse(&settings); err != nil {
		t.Fatal(err)
	}
	return settings.Keys
}

// TestDigestOfNothing has the digest that sha256sum prints of a key that was not set: every request without a key would have it.
func TestDigestOfNothing(t *testing.T) {
	t.Parallel()
	const digest = "sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"
	if _, err := newKeyring(cli.NewCredential("a-key,"+digest), zerolog.Nop()); err == nil || strings.Contains(err.Error(), digest) {
		t.Errorf("error is %v", err)
	}
}

func TestKeysFollowTheirFile(t *testing.T) {
	t.Parallel()
	path := filepath.Join(t.TempDir(), "keys")
	write := func(text string) {
		t.Helper()
		if err := os.WriteFile(path, []byte(text+"\n"), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	write("old-key")
	synctest.Test(t, func(t *testing.T) {
		var log strings.Builder
		ring, err := newKeyring(keysFrom(t, path), zerolog.New(&log))
		if err != nil {
			t.Fatal(err)
		}
		service := requireKey(ring)(http.HandlerFunc(func(http.ResponseWriter, *http.Request) {}))
		// want sends a request with each key.
		want := func(why string, old, fresh int) {
			t.Helper()
			for key, want := range map[string]int{"old-key": old, "new-key": fresh} {
				r, w := httptest.NewRequestWithContext(t.Context(), http.MethodGet, "/users", nil), httptest.NewRecorder()
				r.Header.Set("Authorization", "Bearer "+key)
				if service.ServeHTTP(w, r); w.Code != want {
					t.Errorf("%s: answer %d with %s, want %d", why, w.Code, key, want)
				}
			}
			if strings.Contains(log.String(), "-key") {
				t.Errorf("%s: a key is in the log: %s", why, log.String())
			}
			<-time.After(keysAge)
		}
		const yes, no = http.StatusOK, http.StatusUnauthorized
		want("at the start", yes, no)
		write("old-key,new-key")
		want("one more", yes, yes)
		write("new-key")
		want("one less", no, yes)
		for _, text := range []string{"new-key,,old-key", "", "old key"} {
			log.Reset()
			write(text)
			want("no list of keys", no, yes)
			want("still none", no, yes)
			if n := strings.Count(log.String(), "can't be read"); n != 1 {
				t.Errorf("%q: it is told of %d times: %s", text, n, log.String())
			}
			write("new-key")
			want("as before", no, yes)
		}
		log.Reset()
		if err := os.Remove(path); err != nil {
			t.Fatal(err)
		}
		want("no file", no, yes)
		if !strings.Contains(log.String(), "no such file") {
			t.Errorf("it is not told of: %s", log.String())
		}
		write("old-key")
		want("another one", yes, no)
	})
}
