package embedded

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
)

// postgresVariable names a folder with the programs of another Postgres than the packaged one, for tests on other versions.
const postgresVariable = "SLUICEBOX_POSTGRES_BIN"

// programsDir returns the folder of initdb and postgres.
func programsDir(as *account) (string, error) {
	dir := os.Getenv(postgresVariable)
	if dir == "" {
		native, err := postgresDir(as)
		return filepath.Join(native, "bin"), err
	}
	for _, program := range []string{"initdb", "postgres"} {
		if !exists(filepath.Join(dir, program)) {
			return "", fmt.Errorf("%s is %s, where there is no %s", postgresVariable, dir, program)
		}
	}
	return dir, as.letIn(dir)
}

// majorVersion asks initdb.
func majorVersion(ctx context.Context, programs string) (int, error) {
	said, err := exec.CommandContext(ctx, filepath.Join(programs, "initdb"), "--version").Output() //nolint:gosec // ours, or chosen by who runs this
	if err != nil {
		return 0, fmt.Errorf("ask initdb for its version: %w", err)
	}
	_, version, _ := strings.Cut(string(said), "(PostgreSQL) ") // initdb (PostgreSQL) 15.18 (Debian 15.18-0+deb12u1)
	var major int
	if _, err := fmt.Sscanf(version, "%d", &major); err != nil {
		return 0, fmt.Errorf("initdb says %q, which is no version: %w", said, err)
	}
	return major, nil
}

// postgresDir returns the folder of a Postgres that the account can run. It is the one in node_modules if that can be made fit,
// else a copy in the temporary directory, which later starts use again: a checkout below /root is out of the account's reach.
func postgresDir(as *account) (string, error) {
	dir, version, err := packageDir("@embedded-postgres/" + runtime.GOOS + "-" + npmArch())
	if err != nil {
		return "", err
	}
	unfit := fit(dir, as)
	if unfit == nil {
		return filepath.Join(dir, "native"), nil
	}
	copied, err := cached(dir, "sluicebox-postgres-"+version+"-"+strconv.Itoa(os.Getuid()))
	if err == nil {
		err = fit(copied, as)
	}
	if err != nil {
		return "", fmt.Errorf("postgres in %s can't be run there (%w) and not as a copy: %w", dir, unfit, err)
	}
	return filepath.Join(copied, "native"), nil
}

// fit makes a package of Postgres runnable for the account: links, modes, and the way to it.
func fit(dir string, as *account) error {
	if err := as.letIn(dir); err != nil {
		return err
	}
	if err := link(dir); err != nil {
		return err
	}
	return permit(dir, as)
}

// link makes the symbolic links that npm can't pack. The package would make them in its install script, which does not run.
// Several processes may be at it at once.
func link(dir string) error {
	data, err := os.ReadFile(filepath.Join(dir, "native", "pg-symlinks.json"))
	if err != nil {
		return fmt.Errorf("%w: %s", err, fetch)
	}
	var links []struct{ Source, Target string }
	if err := json.Unmarshal(data, &links); err != nil {
		return fmt.Errorf("%s: pg-symlinks.json: %w: %s", dir, err, fetch)
	}
	for _, l := range links {
		if !filepath.IsLocal(l.Source) || !filepath.IsLocal(l.Target) {
			return fmt.Errorf("%s: pg-symlinks.json: a link leads out of the package", dir)
		}
		to, err := filepath.Rel(filepath.Dir(l.Target), l.Source)
		if err != nil {
			return err
		}
		path := filepath.Join(dir, l.Target)
		if exists(path) {
			continue
		}
		if err := os.Symlink(to, path); err != nil && !errors.Is(err, fs.ErrExist) {
			return fmt.Errorf("make a link that Postgres needs: %w", err)
		}
	}
	return nil
}

// permit lets everybody read the package, if others are to run it, and makes its programs executable.
func permit(dir string, as *account) error {
	programs := filepath.Join(dir, "native", "bin")
	return filepath.WalkDir(dir, func(path string, entry fs.DirEntry, err error) error {
		if err != nil || entry.Type()&fs.ModeSymlink != 0 {
			return err
		}
		info, err := entry.Info()
		if err != nil {
			return err
		}
		need := fs.FileMode(0o400)
		if entry.IsDir() || filepath.Dir(path) == programs {
			need |= 0o100
		}
		if as != nil {
			need |= need>>3 | need>>6
		}
		if mode := info.Mode().Perm(); mode&need != need && (as != nil || int(owner(info)) == os.Getuid()) {
			return os.Chmod(path, mode|need)
		}
		return nil
	})
}

// cached returns a copy of a folder in the temporary directory. The copy must be our own: anybody could have put something of
// that name there.
func cached(dir, name string) (string, error) {
	path := filepath.Join(os.TempDir(), name)
	if info, err := os.Lstat(path); err == nil {
		if !info.IsDir() || int(owner(info)) != os.Getuid() || info.Mode().Perm()&0o022 != 0 {
			return "", fmt.Errorf("%s is not a folder that only this user can write: remove it", path)
		}
		if same(dir, path) == nil {
			return path, nil
		}
		// Temporary directories are cleaned by age, file by file.
		if err := os.RemoveAll(path); err != nil {
			return "", err
		}
	}
	fresh, err := os.MkdirTemp("", name+"-*")
	if err != nil {
		return "", err
	}
	defer func() { _ = os.RemoveAll(fresh) }() // unless it was renamed
	if err := copyDir(dir, fresh); err != nil {
		return "", fmt.Errorf("copy Postgres: %w", err)
	}
	if err := os.Chmod(fresh, 0o755); err != nil { //nolint:gosec // for the account that runs it
		return "", err
	}
	if err := os.Rename(fresh, path); err != nil {
		if same(dir, path) == nil { // another process was faster
			return path, nil
		}
		return "", err
	}
	return path, nil
}

// same compares names and sizes of the regular files of a folder with those of its copy.
func same(dir, path string) error {
	return filepath.WalkDir(dir, func(from string, entry fs.DirEntry, err error) error {
		if err != nil || !entry.Type().IsRegular() {
			return err
		}
		rel, err := filepath.Rel(dir, from)
		if err != nil {
			return err
		}
		info, err := entry.Info()
		if err != nil {
			return err
		}
		copied, err := os.Lstat(filepath.Join(path, rel))
		if err != nil {
			return err
		}
		if copied.Size() != info.Size() {
			return fmt.Errorf("%s has another size", rel)
		}
		return nil
	})
}

// copyDir copies folders and regular files. Links are made anew by [link].
func copyDir(dir, path string) error {
	return filepath.WalkDir(dir, func(from string, entry fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		rel, err := filepath.Rel(dir, from)
		if err != nil {
			return err
		}
		to := filepath.Join(path, rel)
		switch {
		case entry.IsDir():
			return os.MkdirAll(to, 0o755) //nolint:gosec // for the account that runs it
		case entry.Type().IsRegular():
			return copyFile(from, to)
		default:
			return nil
		}
	})
}

func copyFile(from, to string) (err error) {
	in, err := os.Open(from)
	if err != nil {
		return err
	}
	defer func() { _ = in.Close() }()
	out, err := os.OpenFile(to, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o644) //nolint:gosec // for the account that reads it
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, out.Close()) }()
	_, err = io.Copy(out, in)
	return err
}
