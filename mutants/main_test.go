package main

import (
	"os/exec"
	"path/filepath"
	"testing"
)

// TestPatchesApply finds a mutant whose place in the code has changed: it would be no mutant any more.
func TestPatchesApply(t *testing.T) {
	t.Parallel()
	paths, err := filepath.Glob("*.patch")
	if err != nil || len(paths) == 0 {
		t.Fatalf("%d patches, %v", len(paths), err)
	}
	for _, path := range paths {
		check := exec.CommandContext(t.Context(), "git", "apply", "--check", filepath.Join("mutants", path)) //nolint:gosec // ours
		check.Dir = ".."
		if out, err := check.CombinedOutput(); err != nil {
			t.Errorf("%s: %v\n%s", path, err, out)
		}
	}
}
