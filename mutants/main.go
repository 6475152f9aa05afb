// Command mutants shows that the tests can fail: it puts one known bug after the other into a copy of the source tree, runs the test
// that must notice it, and fails if that test passes.
//
//	go run ./mutants          all of them
//	go run ./mutants 03 11    these alone
//
// docs/mutants.md tells of the last run of each.
//
// A bug is a file NN-name.patch beside this one. It begins with one line that says what it breaks and one that says how it is noticed,
// "Test: " and the arguments of go test; `git diff` follows.
package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"time"
)

// limit is how long a test may take to notice a bug. One that only notices by its time-out has not noticed it.
const limit = 5 * time.Minute

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt)
	err := run(ctx, os.Args[1:])
	stop()
	if err != nil {
		fmt.Fprintln(os.Stderr, "mutants:", err)
		os.Exit(1)
	}
}

// mutant is one bug, and what became of it.
type mutant struct {
	name   string
	path   string
	breaks string
	test   []string // arguments of go test

	caught string        // the test that failed; empty: the bug was not noticed
	took   time.Duration // of that, building included
}

func run(ctx context.Context, chosen []string) error {
	mutants, err := load()
	if err != nil {
		return err
	}
	isChosen := func(m *mutant) bool {
		return len(chosen) == 0 || slices.ContainsFunc(chosen, func(c string) bool { return strings.HasPrefix(m.name, c) })
	}
	if !slices.ContainsFunc(mutants, isChosen) {
		return errors.New("no mutants: run this at the top of the source tree, and name some that are in mutants/")
	}
	rows, err := earlier()
	if err != nil {
		return err
	}
	tree, err := copyTree(ctx)
	if tree != "" {
		defer func() { _ = os.RemoveAll(tree) }()
	}
	if err != nil {
		return err
	}
	passed := map[string]bool{} // tests that are known to pass without a bug
	var problems []error
	for _, m := range mutants {
		if !isChosen(m) {
			continue
		}
		fmt.Fprintf(os.Stderr, "%s … ", m.name)
		if err := m.try(ctx, tree, passed); err != nil {
			fmt.Fprintln(os.Stderr, "not tried")
			problems = append(problems, fmt.Errorf("%s: %w", m.name, err))
			if ctx.Err() != nil {
				break
			}
			continue
		}
		if m.caught == "" {
			problems = append(problems, fmt.Errorf("%s: its test does not notice it", m.name))
		}
		fmt.Fprintf(os.Stderr, "%s, %.0f s\n", m.verdict(), m.took.Seconds())
		rows[m.name] = m.row()
		if err := os.WriteFile(document, table(mutants, rows), 0o644); err != nil { //nolint:gosec // for everybody to read
			return err
		}
	}
	return errors.Join(problems...)
}

// load reads the patches.
func load() ([]*mutant, error) {
	paths, err := filepath.Glob(filepath.Join("mutants", "*.patch"))
	if err != nil {
		return nil, err
	}
	var out []*mutant
	for _, path := range paths {
		name := strings.TrimSuffix(filepath.Base(path), ".patch")
		text, err := os.ReadFile(path)
		if err != nil {
			return nil, err
		}
		if path, err = filepath.Abs(path); err != nil {
			return nil, err
		}
		lines := strings.SplitN(string(text), "\n", 3)
		test, ok := "", len(lines) == 3
		if ok {
			test, ok = strings.CutPrefix(lines[1], "Test: ")
		}
		if !ok {
			return nil, fmt.Errorf("%s: a line that says what it breaks, and one that begins with Test: must come first", name)
		}
		out = append(out, &mutant{name: name, path: path, breaks: lines[0], test: strings.Fields(test)})
	}
	return out, nil
}

// copyTree copies the source tree, as it is now, to a temporary folder.
func copyTree(ctx context.Context) (string, error) {
	files, err := exec.CommandContext(ctx, "git", "ls-files", "-z", "--cached", "--others", "--exclude-standard").Output()
	if err != nil {
		return "", fmt.Errorf("list the source files: %w", err)
	}
	tree, err := os.MkdirTemp("", "mutants")
	if err != nil {
		return "", err
	}
	for name := range strings.SplitSeq(strings.TrimSuffix(string(files), "\x00"), "\x00") {
		data, err := os.ReadFile(name)
		if errors.Is(err, os.ErrNotExist) { // deleted, not committed
			continue
		}
		if err != nil {
			return tree, err
		}
		to := filepath.Join(tree, name)
		if err := os.MkdirAll(filepath.Dir(to), 0o755); err != nil { //nolint:gosec // servers run as another user
			return tree, err
		}
		if err := os.WriteFile(to, data, 0o644); err != nil { //nolint:gosec // as above
			return tree, err
		}
	}
	return tree, nil
}

// try runs the test without the bug, unless that was done before, and with it. The tree is left as it was.
func (m *mutant) try(ctx context.Context, tree string, passed map[string]bool) (err error) {
	test := append([]string{"test", "-count=1", "-timeout", limit.String()}, m.test...)
	if key := strings.Join(m.test, " "); !passed[key] {
		if out, err := command(ctx, tree, "go", test...); err != nil {
			return fmt.Errorf("its test fails without it: %w\n%s", err, out)
		}
		passed[key] = true
	}
	if out, err := command(ctx, tree, "git", "apply", m.path); err != nil {
		return fmt.Errorf("the patch does not apply; make it anew: %w\n%s", err, out)
	}
	defer func() {
		if out, undoErr := command(context.WithoutCancel(ctx), tree, "git", "apply", "-R", m.path); undoErr != nil {
			err = errors.Join(err, fmt.Errorf("take the patch back: %w\n%s", undoErr, out))
		}
	}()
	began := time.Now()
	// A test may build programs itself, and one that can't be built fails it as well.
	if out, err := command(ctx, tree, "go", "build", "./..."); err != nil {
		return fmt.Errorf("it does not compile: %w\n%s", err, out)
	}
	out, err := command(ctx, tree, "go", test...)
	m.took = time.Since(began)
	switch {
	case ctx.Err() != nil:
		return ctx.Err()
	case err == nil || bytes.Contains(out, []byte("panic: test timed out")):
		return nil
	}
	if m.caught = failed(out); m.caught == "" {
		return fmt.Errorf("go test failed, and not by a test: %w\n%s", err, out)
	}
	return nil
}

// failed is the innermost of the first tests that failed.
func failed(out []byte) string {
	name := ""
	for _, match := range regexp.MustCompile(`(?m)^ *--- FAIL: (\S+)`).FindAllSubmatch(out, -1) {
		if next := string(match[1]); strings.HasPrefix(next, name) {
			name = next
		}
	}
	return name
}

// command runs a program in the copy and returns all that it says. The embedded databases are those of the original.
func command(ctx context.Context, tree, name string, args ...string) ([]byte, error) {
	stores, err := filepath.Abs(filepath.Join("internal", "embedded"))
	if err != nil {
		return nil, err
	}
	cmd := exec.CommandContext(ctx, name, args...)
	cmd.Dir = tree
	cmd.Cancel = func() error { return cmd.Process.Signal(os.Interrupt) } // go test hands it on, and the tests stop their servers
	cmd.WaitDelay = time.Minute
	cmd.Env = append(os.Environ(), "SLUICEBOX_STORES="+stores)
	return cmd.CombinedOutput()
}

func (m *mutant) verdict() string {
	if m.caught == "" {
		return "NOT NOTICED"
	}
	return "noticed by " + m.caught
}

// document is the table of all mutants.
const document = "docs/mutants.md"

// earlier reads the rows of earlier runs, by name.
func earlier() (map[string]string, error) {
	rows := map[string]string{}
	text, err := os.ReadFile(document)
	if errors.Is(err, os.ErrNotExist) {
		return rows, nil
	}
	for line := range strings.Lines(string(text)) {
		if name, _, ok := strings.Cut(strings.TrimPrefix(line, "| ["), "]"); ok {
			rows[name] = line
		}
	}
	return rows, err
}

func (m *mutant) row() string {
	caught := "**nothing**"
	if m.caught != "" {
		caught = "`" + m.caught + "`"
	}
	return fmt.Sprintf("| [%[1]s](../mutants/%[1]s.patch) | %[2]s | %[3]s | %.0[4]f |\n", m.name, m.breaks, caught, m.took.Seconds())
}

// table is the document, of those that have a row.
func table(mutants []*mutant, rows map[string]string) []byte {
	var out bytes.Buffer
	out.WriteString(`# Mutants

Bugs of the delivery path that ` + "`make mutants`" + ` puts into a copy of the code, one at a time, and the test that notices each. It fails if one
is not noticed within five minutes, if a patch does not apply any more, or if a test fails without the bug. It writes this table: what the
last run of each was like, and how long building and testing took then.

| mutant | what it breaks | noticed by | seconds |
|---|---|---|---:|
`)
	for _, m := range mutants {
		out.WriteString(rows[m.name])
	}
	return out.Bytes()
}
