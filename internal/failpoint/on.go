//go:build failpoints

package failpoint

import (
	"os"
	"strconv"
	"strings"
	"sync/atomic"
	"syscall"
)

var hits atomic.Int64 //nolint:gochecknoglobals // counts the hits of the one failpoint a test process was given

// Hit kills the process with SIGKILL when SLUICEBOX_FAILPOINT is name, or at the n-th hit when it is name:n. With
// SLUICEBOX_FAILPOINT_STOP set it stops it with SIGSTOP instead; woken, the process goes on.
func Hit(name string) {
	want, count, _ := strings.Cut(os.Getenv("SLUICEBOX_FAILPOINT"), ":")
	if want != name {
		return
	}
	n, err := strconv.ParseInt(count, 10, 64)
	if err != nil {
		n = 1
	}
	if hits.Add(1) != n {
		return
	}
	if os.Getenv("SLUICEBOX_FAILPOINT_STOP") != "" {
		_ = syscall.Kill(os.Getpid(), syscall.SIGSTOP)
		return
	}
	_ = syscall.Kill(os.Getpid(), syscall.SIGKILL)
	select {} // the signal is on its way; nothing after this place may run
}
