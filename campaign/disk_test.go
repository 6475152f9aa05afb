package main

import (
	"errors"
	"os"
	"path/filepath"
	"syscall"
	"testing"
)

// TestDisk holds that a disk that was filled takes nothing more, and takes it again once it was freed.
func TestDisk(t *testing.T) {
	t.Parallel()
	d, err := openDisk(t.Context(), "test")
	if err != nil {
		t.Skip("no disk can be mounted here: ", err)
	}
	defer func() {
		if err := d.close(t.Context()); err != nil {
			t.Error(err)
		}
	}()
	free, err := d.fill()
	if err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(d.data, "more")
	content := make([]byte, 64<<10)
	if err := os.WriteFile(path, content, 0o600); !errors.Is(err, syscall.ENOSPC) {
		t.Errorf("a write to a full disk: %v", err)
	}
	if err := free(); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path, content, 0o600); err != nil {
		t.Errorf("a write once there is room again: %v", err)
	}
}
