//go:build linux

package embedded

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"go.uber.org/goleak"
)

// roleVariable makes this test binary a program that uses the stores, instead of testing.
const roleVariable = "SLUICEBOX_TEST_ROLE"

const (
	roleUser   = "user"   // starts both, asks both, stops both
	roleParent = "parent" // starts both, prints their processes, and waits to be killed
)

func TestMain(m *testing.M) {
	switch os.Getenv(roleVariable) {
	case "":
		goleak.VerifyTestMain(m)
	case roleUser:
		exit(useBoth(func(*Postgres, *ClickHouse) {}))
	case roleParent:
		exit(useBoth(func(pg *Postgres, ch *ClickHouse) {
			fmt.Println(pg.server.cmd.Process.Pid, ch.PID()) //nolint:forbidigo // for the test that started this
			_, _ = io.Copy(io.Discard, os.Stdin)
		}))
	}
}

func exit(err error) {
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1) //nolint:forbidigo // it is a main function here
	}
	os.Exit(0) //nolint:forbidigo // it is a main function here
}

func useBoth(use func(*Postgres, *ClickHouse)) error {
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	pg, err := StartPostgres(ctx, PostgresOptions{NoSync: true})
	if err != nil {
		return err
	}
	ch, err := StartClickHouse(ctx, ClickHouseOptions{})
	if err != nil {
		return errors.Join(err, pg.Stop(ctx))
	}
	use(pg, ch)
	return errors.Join(pg.ping(ctx), ch.ping(ctx, ch.URL("")), ch.Stop(ctx), pg.Stop(ctx))
}

// patience bounds every wait. It is not a claim about speed: the machine may be busy.
const patience = 90 * time.Second

// again runs this test binary in another role, as an ordinary user if asked and root.
func again(t *testing.T, role string, ordinary bool) *exec.Cmd {
	t.Helper()
	cmd := exec.CommandContext(t.Context(), executable)
	cmd.Env = append(os.Environ(), roleVariable+"="+role)
	cmd.Stderr = t.Output()
	if ordinary && os.Getuid() == 0 {
		cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: 65534, Gid: 65534}}
	}
	return cmd
}

// tempDir makes an empty temporary directory that everybody can use, and makes it the one of this process.
func tempDir(t *testing.T) string {
	t.Helper()
	dir, err := os.MkdirTemp("/tmp", "sluicebox-test-") //nolint:usetesting // t.TempDir is too long for a path with a socket in it
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := os.RemoveAll(dir); err != nil {
			t.Error(err)
		}
	})
	if err := os.Chmod(dir, 0o777|os.ModeSticky); err != nil { //nolint:gosec // like /tmp
		t.Fatal(err)
	}
	t.Setenv("TMPDIR", dir)
	return dir
}

// leftovers are the temporary directories of stores.
func leftovers(t *testing.T, dir string) []string {
	t.Helper()
	found, err := filepath.Glob(filepath.Join(dir, scratchPrefix+"*"))
	if err != nil {
		t.Fatal(err)
	}
	return found
}

func eventually(t *testing.T, promise string, holds func() bool) {
	t.Helper()
	tick := time.NewTicker(5 * time.Millisecond)
	defer tick.Stop()
	limit := time.After(patience)
	for !holds() {
		select {
		case <-tick.C:
		case <-limit:
			t.Fatalf("in vain: %s", promise)
		}
	}
}

func TestStoresWorkForAnOrdinaryUserAndLeaveNothing(t *testing.T) {
	dir := tempDir(t)
	if err := again(t, roleUser, true).Run(); err != nil {
		t.Error(err)
	}
	if left := leftovers(t, dir); len(left) > 0 {
		t.Errorf("left behind: %q", left)
	}
}

func TestStoresDieWithAParentThatIsKilled(t *testing.T) {
	dir := tempDir(t)
	parent := again(t, roleParent, false)
	in, err := parent.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = in.Close() }()
	out, err := parent.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := parent.Start(); err != nil {
		t.Fatal(err)
	}
	line, err := bufio.NewReader(out).ReadString('\n')
	if err != nil {
		t.Fatalf("%v; %v", err, parent.Wait())
	}
	var pids []int
	for field := range strings.FieldsSeq(line) {
		pid, err := strconv.Atoi(field)
		if err != nil {
			t.Fatal(err)
		}
		pids = append(append(pids, pid), descendants(pid)...)
	}
	if len(pids) < 4 {
		t.Errorf("only the processes %v; Postgres has more", pids)
	}
	if err := parent.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	_ = parent.Wait() // says that it was killed
	eventually(t, "all children are gone", func() bool {
		for _, pid := range pids {
			if state, _, ok := stat(pid); ok && state != 'Z' && state != 'X' {
				return false
			}
		}
		return true
	})

	left := leftovers(t, dir)
	if len(left) == 0 {
		t.Fatal("nothing is left behind; the rest of the test proves nothing")
	}
	long := time.Now().Add(-2 * sweepAge)
	for _, path := range left {
		if err := os.Chtimes(path, long, long); err != nil {
			t.Fatal(err)
		}
	}
	next, err := newScratch()
	if err != nil {
		t.Fatal(err)
	}
	if err := os.Chtimes(next.path, long, long); err != nil {
		t.Fatal(err)
	}
	sweep()
	if left := leftovers(t, dir); len(left) != 1 || left[0] != next.path {
		t.Errorf("after the next start there is %q; only %q, which is in use, should be", left, next.path)
	}
	if err := next.remove(); err != nil {
		t.Error(err)
	}
}
