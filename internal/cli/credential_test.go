package cli_test

import (
	"encoding/json"
	"fmt"
	"os"
	"strings"
	"testing"

	"github.com/sluicebox/sluicebox/internal/cli"
)

// credentials is a grammar with a secret that may change.
type credentials struct {
	URL cli.Credential `env:"DATABASE_URL" name:"database-url" required:"" help:"Postgres."`
}

func credential(t *testing.T, args []string, environ ...string) cli.Credential {
	t.Helper()
	var s credentials
	if _, err := (cli.Program{Name: "cdc", Args: append([]string{}, args...), Environ: environ}).Parse(&s); err != nil {
		t.Fatal(err)
	}
	return s.URL
}

func TestCredentialFollowsItsFile(t *testing.T) {
	t.Parallel()
	path := secretFile(t, "first\n")
	c := credential(t, nil, "DATABASE_URL_FILE="+path)
	if got := c.Now(); got != "first" || c.Path() != path {
		t.Errorf("%q of %q", got, c.Path())
	}
	if err := os.WriteFile(path, []byte("second\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	if got := c.Now(); got != "second" {
		t.Errorf("%q, want what the file has now", got)
	}
	if err := os.Remove(path); err != nil {
		t.Fatal(err)
	}
	if got := c.Now(); got != "first" {
		t.Errorf("%q, want what the file had at the start, since it is gone", got)
	}
}

func TestCredentialFromElsewhereStays(t *testing.T) {
	t.Parallel()
	path := secretFile(t, "file")
	for name, c := range map[string]cli.Credential{
		"of a variable":         credential(t, nil, "DATABASE_URL=given"),
		"of a flag over a file": credential(t, []string{"--database-url=given"}, "DATABASE_URL_FILE="+path),
		"of a program's own":    cli.NewCredential("given"),
	} {
		if got := c.Now(); got != "given" || c.Path() != "" {
			t.Errorf("%s: %q of %q", name, got, c.Path())
		}
	}
}

func TestCredentialIsNotPrinted(t *testing.T) {
	t.Parallel()
	c := cli.NewCredential("canary")
	encoded, err := json.Marshal(map[string]any{"one": c})
	if err != nil {
		t.Fatal(err)
	}
	if all := fmt.Sprintf("%s %v %+v %#v %q %+v %s", c, c, c, c, c, credentials{c}, encoded); strings.Contains(all, "canary") {
		t.Errorf("a secret is printed: %s", all)
	}
}
