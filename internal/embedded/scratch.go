package embedded

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"time"
)

// scratchPrefix starts the name of every temporary directory of this package.
const scratchPrefix = "sluicebox-store-"

// sweepAge spares directories that another process has made but not locked yet.
const sweepAge = time.Minute

// scratch is a temporary directory that is known to be in use while this process lives.
type scratch struct {
	path string
	lock *os.File
}

// newScratch makes a temporary directory, and removes those that processes left which were killed.
func newScratch() (*scratch, error) {
	sweep()
	path, err := os.MkdirTemp("", scratchPrefix)
	if err != nil {
		return nil, fmt.Errorf("make a temporary directory: %w", err)
	}
	held, err := lock(path)
	if err != nil {
		_ = os.RemoveAll(path)
		return nil, err
	}
	return &scratch{path: path, lock: held}, nil
}

// remove removes the directory. A nil scratch has none.
func (s *scratch) remove() error {
	if s == nil {
		return nil
	}
	// The server is gone, but a process of another user may still be about to let go of its socket's directory.
	err := os.RemoveAll(s.path)
	return errors.Join(err, s.lock.Close())
}

// sweep removes what killed processes left. It is a courtesy: what can't be removed stays.
func sweep() {
	found, _ := filepath.Glob(filepath.Join(os.TempDir(), scratchPrefix+"*"))
	for _, path := range found {
		info, err := os.Lstat(path)
		if err != nil || !info.IsDir() || time.Since(info.ModTime()) < sweepAge || int(owner(info)) != os.Getuid() {
			continue
		}
		if held, err := lock(path); err == nil {
			_ = os.RemoveAll(path)
			_ = held.Close()
		}
	}
}

// tailSize is how much of a log goes into an error: some twenty lines, where the reason is.
const tailSize = 2 << 10

// tail returns the end of a log.
func tail(path string) string {
	file, err := os.Open(path)
	if err != nil {
		return "(no log: " + err.Error() + ")"
	}
	defer func() { _ = file.Close() }()
	if info, err := file.Stat(); err == nil && info.Size() > tailSize {
		_, _ = file.Seek(-tailSize, io.SeekEnd)
	}
	data, _ := io.ReadAll(file)
	text := strings.TrimSpace(strings.Map(func(r rune) rune {
		if r < ' ' && r != '\n' && r != '\t' {
			return -1 // a terminal's control characters
		}
		return r
	}, string(data)))
	if text == "" {
		return "(its log is empty)"
	}
	return "its log ends:\n" + text
}

// exists tells whether a path can be seen.
func exists(path string) bool {
	_, err := os.Lstat(path)
	return !errors.Is(err, fs.ErrNotExist)
}
