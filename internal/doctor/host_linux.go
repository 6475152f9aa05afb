package doctor

import (
	"math"
	"os"
	"path/filepath"
	"runtime/debug"
	"strings"

	"golang.org/x/sys/unix"
)

// ReadHost looks at this machine. What it can't see stays zero.
func ReadHost() Host {
	host := Host{GoMemory: debug.SetMemoryLimit(-1)}
	group := ""
	if text, err := os.ReadFile("/proc/self/cgroup"); err == nil {
		for line := range strings.Lines(string(text)) {
			if path, is := strings.CutPrefix(strings.TrimSpace(line), "0::"); is {
				group = path
			}
		}
	}
	host.Memory = groupLimit(func(path string) (string, error) {
		text, err := os.ReadFile(filepath.Join("/sys/fs/cgroup", path))
		return string(text), err
	}, group)
	var files unix.Rlimit
	if unix.Getrlimit(unix.RLIMIT_NOFILE, &files) == nil {
		host.OpenFiles = min(files.Cur, math.MaxInt32)
	}
	// With no mode set it changes nothing, and needs no right.
	switch state, err := unix.Adjtimex(&unix.Timex{}); {
	case err != nil:
		host.Clock = ClockUnknown
	case state == unix.TIME_ERROR:
		host.Clock = ClockAdrift
	default:
		host.Clock = ClockSynchronized
	}
	return host
}
