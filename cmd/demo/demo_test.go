package main

import (
	"bytes"
	"encoding/json"
	"os/exec"
	"path/filepath"
	"testing"

	"go.uber.org/goleak"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// TestDemo runs the README's first command, with fewer users: it ends with code 0 only if every count agrees.
func TestDemo(t *testing.T) {
	t.Parallel()
	path := filepath.Join(t.TempDir(), "demo")
	if out, err := exec.CommandContext(t.Context(), "go", "build", "-o", path, ".").CombinedOutput(); err != nil {
		t.Fatalf("build demo: %v: %s", err, out)
	}
	const users = 200
	cmd := exec.CommandContext(t.Context(), path, "--users", "200", "--exit", "--json")
	cmd.Dir = filepath.Join("..", "..") // as make does
	var stdout, stderr bytes.Buffer
	cmd.Stdout, cmd.Stderr = &stdout, &stderr
	if err := cmd.Run(); err != nil {
		t.Fatalf("demo: %v\n%s", err, stderr.String())
	}
	var got result
	if err := json.Unmarshal(stdout.Bytes(), &got); err != nil {
		t.Fatalf("the summary is no JSON: %v\n%s", err, stdout.String())
	}
	if !got.Agrees || got.Users != users || got.Rows != users || got.UniqueIDs != users || got.Processed != users || got.P99 <= 0 {
		t.Errorf("summary: %+v", got)
	}
}

func TestJudge(t *testing.T) {
	t.Parallel()
	whole := result{Users: 3, UserRows: 3, Events: 3, Processed: 3, Rows: 3, UniqueIDs: 3}
	for name, change := range map[string]func(*result){
		"an event is missing in ClickHouse": func(r *result) { r.Rows, r.UniqueIDs = 2, 2 },
		"an event is there twice":           func(r *result) { r.Rows = 4 },
		"one took another's place":          func(r *result) { r.UniqueIDs = 2 },
		"an event is not marked":            func(r *result) { r.Processed = 2 },
		"a user has no event":               func(r *result) { r.Events, r.Processed, r.Rows, r.UniqueIDs = 2, 2, 2, 2 },
		"a user was not created":            func(r *result) { r.Users = 2 },
	} {
		r := whole
		change(&r)
		if r.judge(3); r.Agrees {
			t.Errorf("%s: the counts agree", name)
		}
	}
	if whole.judge(3); !whole.Agrees {
		t.Error("equal counts do not agree")
	}
}
