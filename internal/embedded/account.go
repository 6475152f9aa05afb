package embedded

import (
	"errors"
	"fmt"
	"os"
	"os/user"
	"path/filepath"
	"strconv"
	"strings"
)

// account is the user that Postgres runs as when this process is root, which Postgres refuses. nil is this process's own.
type account struct {
	name     string
	uid, gid uint32
}

// unprivileged returns the account for Postgres. It needs a name, which initdb looks up.
func unprivileged() (*account, error) {
	if os.Getuid() != 0 {
		return nil, nil
	}
	for _, name := range []string{"postgres", "nobody"} {
		found, err := user.Lookup(name)
		if err != nil {
			continue
		}
		uid, err := strconv.ParseUint(found.Uid, 10, 32)
		if err != nil {
			continue
		}
		gid, err := strconv.ParseUint(found.Gid, 10, 32)
		if err != nil {
			continue
		}
		return &account{name: name, uid: uint32(uid), gid: uint32(gid)}, nil
	}
	return nil, errors.New("postgres does not run as root, and there is neither a user postgres nor nobody: run as an ordinary user")
}

// own gives a file to the account.
func (a *account) own(path string) error {
	if a == nil {
		return nil
	}
	return os.Chown(path, int(a.uid), int(a.gid))
}

// letIn makes sure that the account can reach path through its parents. Directories of our own below the temporary directory
// are opened for it, as those of testing.T.TempDir need; others are not ours to open.
func (a *account) letIn(path string) error {
	if a == nil {
		return nil
	}
	temp, err := filepath.EvalSymlinks(os.TempDir())
	if err != nil {
		return err
	}
	if path, err = filepath.EvalSymlinks(path); err != nil {
		return err
	}
	for dir := path; ; dir = filepath.Dir(dir) {
		info, err := os.Stat(dir)
		if err != nil {
			return err
		}
		if reachable := info.Mode().Perm()&0o001 != 0 || owner(info) == a.uid; !reachable {
			if !strings.HasPrefix(dir, temp+string(filepath.Separator)) {
				return fmt.Errorf("user %s, as whom Postgres runs for root, can't reach %s through %s: use a directory below %s, or chmod o+x",
					a.name, path, dir, temp)
			}
			if err := os.Chmod(dir, info.Mode().Perm()|0o011); err != nil {
				return err
			}
		}
		if dir == filepath.Dir(dir) {
			return nil
		}
	}
}
