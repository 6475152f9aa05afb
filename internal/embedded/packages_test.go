//go:build linux

package embedded

import (
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"testing"
)

func TestAMissingPackageIsAnErrorThatSaysWhatToDo(t *testing.T) {
	t.Setenv(postgresVariable, "") // another Postgres would need no package
	chdb := "@chdb/lib-linux-" + npmArch() + "-gnu"
	postgres := "@embedded-postgres/" + runtime.GOOS + "-" + npmArch()
	for name, prepare := range map[string]func(t *testing.T, dir string){
		"nothing fetched": func(*testing.T, string) {},
		"another version": func(t *testing.T, dir string) {
			t.Helper()
			writePackage(t, dir, chdb, `{"version": "26.5.3"}`)
			writePackage(t, dir, postgres, `{"version": "17.0.0"}`)
		},
		"damaged": func(t *testing.T, dir string) {
			t.Helper()
			writePackage(t, dir, chdb, `{"vers`)
			writePackage(t, dir, postgres, ``)
		},
		"half": func(t *testing.T, dir string) {
			t.Helper()
			writePackage(t, dir, chdb, `{"version": "26.7.3-stable.1"}`)
			writePackage(t, dir, postgres, `{"version": "18.4.0-beta.17"}`)
		},
	} {
		t.Run(name, func(t *testing.T) {
			temp := tempDir(t)
			stores := filepath.Join(temp, "stores")
			t.Setenv(storesVariable, stores)
			prepare(t, stores)
			_, err := StartPostgres(t.Context(), PostgresOptions{})
			if err == nil || !strings.Contains(err.Error(), "make stores") {
				t.Errorf("Postgres: %v", err)
			}
			_, err = StartClickHouse(t.Context(), ClickHouseOptions{})
			if err == nil || !strings.Contains(err.Error(), "make stores") {
				t.Errorf("ClickHouse: %v", err)
			}
			if left := leftovers(t, temp); len(left) > 0 {
				t.Errorf("left behind: %q", left)
			}
		})
	}
	t.Run("outside of the source tree", func(t *testing.T) {
		t.Setenv(storesVariable, "")
		t.Chdir(t.TempDir())
		if _, err := StartPostgres(t.Context(), PostgresOptions{}); err == nil || !strings.Contains(err.Error(), storesVariable) {
			t.Error(err)
		}
	})
}

func writePackage(t *testing.T, stores, name, manifest string) {
	t.Helper()
	dir := filepath.Join(stores, "node_modules", name)
	if err := os.MkdirAll(dir, 0o750); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(dir, "package.json"), []byte(manifest), 0o600); err != nil {
		t.Fatal(err)
	}
}

// A checkout below /root is like this for the user that runs Postgres.
func TestPostgresRunsFromAPackageThatItsUserCannotReach(t *testing.T) {
	name := "@embedded-postgres/" + runtime.GOOS + "-" + npmArch()
	fetched, _, err := packageDir(name)
	if err != nil {
		t.Fatal(err)
	}
	closed := filepath.Join(t.TempDir(), "closed")
	if err := copyDir(fetched, filepath.Join(closed, "node_modules", name)); err != nil {
		t.Fatal(err)
	}
	t.Setenv(storesVariable, closed)
	t.Setenv(postgresVariable, "")
	tempDir(t)                                      // another one: below it, directories would be opened
	if err := os.Chmod(closed, 0o700); err != nil { //nolint:gosec // a directory
		t.Fatal(err)
	}
	for range 2 { // the second one finds the copy
		pg, err := StartPostgres(t.Context(), PostgresOptions{NoSync: true})
		if err != nil {
			t.Fatal(err)
		}
		if err := pg.Stop(t.Context()); err != nil {
			t.Error(err)
		}
	}
}

func TestACopyThatSomebodyElseCanChangeIsNotUsed(t *testing.T) {
	temp := tempDir(t)
	source := t.TempDir()
	if err := os.WriteFile(filepath.Join(source, "file"), []byte("text"), 0o600); err != nil {
		t.Fatal(err)
	}
	path, err := cached(source, "copy")
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(path, "file"), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := cached(source, "copy"); err != nil {
		t.Fatal(err)
	}
	if text, err := os.ReadFile(filepath.Join(path, "file")); err != nil || string(text) != "text" {
		t.Errorf("a damaged copy was not made anew: %q, %v", text, err)
	}
	if err := os.Chmod(path, 0o777); err != nil { //nolint:gosec // what the test is about
		t.Fatal(err)
	}
	if _, err := cached(source, "copy"); err == nil || !strings.Contains(err.Error(), filepath.Join(temp, "copy")) {
		t.Errorf("a copy that everybody can write: %v", err)
	}
}

func TestAnotherPostgresIsChosenByItsFolder(t *testing.T) {
	t.Setenv(postgresVariable, "/nowhere")
	want := postgresVariable + " is /nowhere, where there is no initdb"
	if _, err := StartPostgres(t.Context(), PostgresOptions{}); err == nil || err.Error() != want {
		t.Errorf("error %v, want %s", err, want)
	}
	native, err := postgresDir(nil)
	if err != nil {
		t.Fatal(err)
	}
	if major, err := majorVersion(t.Context(), filepath.Join(native, "bin")); err != nil || major != 18 {
		t.Errorf("version %d, error %v; want 18", major, err)
	}
}
