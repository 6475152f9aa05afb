package check

import (
	"io"
	"os"
	"regexp"
	"slices"
	"testing"

	"github.com/rhysd/actionlint"
)

// TestWorkflows holds the workflows against the syntax of GitHub Actions and the inputs of the actions that they use, because nothing else here
// can run them, and every action to a commit: a tag can be moved by whoever takes over an action.
func TestWorkflows(t *testing.T) {
	linter, err := actionlint.NewLinter(io.Discard, &actionlint.LinterOptions{})
	if err != nil {
		t.Fatal(err)
	}
	makefile, err := os.ReadFile("../../Makefile")
	if err != nil {
		t.Fatal(err)
	}
	targets := captured(regexp.MustCompile(`(?m)^([a-z0-9-]+):`), string(makefile))
	uses := regexp.MustCompile(`(?m)\buses: .*$`)
	pinned := regexp.MustCompile(`@[0-9a-f]{40} # (v[0-9]+)\.[0-9]+\.[0-9]+`)
	made := regexp.MustCompile(`\bmake ([a-z0-9-]+)`)
	for _, path := range glob(t, "../../.github/workflows/*.yml") {
		text, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		for _, action := range uses.FindAllString(string(text), -1) {
			if !pinned.MatchString(action) {
				t.Errorf("%s: an action without a commit and its version: %s", path, action)
			}
		}
		for _, target := range captured(made, string(text)) {
			if !slices.Contains(targets, target) {
				t.Errorf("%s: make has no target %s", path, target)
			}
		}
		// The linter knows the inputs of an action by its version, not by its commit.
		problems, err := linter.Lint(path, pinned.ReplaceAll(text, []byte("@$1")), nil)
		if err != nil {
			t.Fatal(err)
		}
		for _, problem := range problems {
			t.Error(problem)
		}
	}
}

// captured is what the first group of a pattern matches, each time.
func captured(pattern *regexp.Regexp, text string) (all []string) {
	for _, match := range pattern.FindAllStringSubmatch(text, -1) {
		all = append(all, match[1])
	}
	return all
}
