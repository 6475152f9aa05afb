package main

import "testing"

// TestPatchesApply finds a mutant whose place in the code has changed: it would be no mutant any more.
func TestPatchesApply(t *testing.T) {
	t.Chdir("..")
	mutants, err := load()
	if err != nil || len(mutants) == 0 {
		t.Fatalf("%d mutants, %v", len(mutants), err)
	}
	for _, m := range mutants {
		if out, err := command(t.Context(), ".", "git", "apply", "--check", m.path); err != nil {
			t.Errorf("%s: %v\n%s", m.name, err, out)
		}
	}
}
