package doctor

import (
	"context"
	"fmt"
	"math"
	"strings"

	"github.com/sluicebox/sluicebox/internal/cli"
)

// Host is what this machine, or the container, gives to a process.
type Host struct {
	Memory    int64 // bytes that it may have, by its control group; 0: no limit
	GoMemory  int64 // soft limit of Go's memory in bytes (GOMEMLIMIT); [math.MaxInt64]: none
	OpenFiles uint64
	Clock     Clock
}

// Clock says whether the kernel knows its clock to be right.
type Clock string

// The states of a clock.
const (
	ClockSynchronized Clock = "synchronized"
	ClockAdrift       Clock = "adrift"
	ClockUnknown      Clock = ""
)

func hostChecks() []check {
	return []check{
		{"host.memory", nil, memory, anytime},
		{"host.go_memory_limit", nil, goMemory, anytime},
		{"host.open_files", nil, openFiles, anytime},
		{"host.clock", nil, clock, anytime},
	}
}

// memoryFor is what the daemon takes at its peak, about: a batch that is gathered and one on its way, each as rows and in the client's buffers,
// and what does not depend on batches. docs/bench.md has what was measured.
func memoryFor(batch int64) int64 { return 48<<20 + 4*batch }

func memory(_ context.Context, l *look) Finding {
	has, need := l.config.Host.Memory, memoryFor(l.config.BatchBytes)
	switch {
	case has == 0:
		return ok("no limit")
	case has < need:
		return warn(cli.Size(need), "raise the memory limit of the container or unit, or lower CDC_BATCH_MAX_BYTES",
			"the limit is %s, little for batches of %s: the kernel may kill the daemon", cli.Size(has), cli.Size(l.config.BatchBytes))
	}
	return ok("%s", cli.Size(has))
}

func goMemory(_ context.Context, l *look) Finding {
	host := l.config.Host
	if host.GoMemory == math.MaxInt64 {
		return ok("none")
	}
	switch need := memoryFor(l.config.BatchBytes); {
	case host.Memory > 0 && host.GoMemory > host.Memory:
		return warn("less than the memory that the process may have", fmt.Sprintf("GOMEMLIMIT=%d", host.Memory*9/10),
			"GOMEMLIMIT is %s, more than the limit of %s that it should keep the daemon below", cli.Size(host.GoMemory), cli.Size(host.Memory))
	case host.GoMemory < need/2:
		return warn(cli.Size(need), fmt.Sprintf("GOMEMLIMIT=%d, or lower CDC_BATCH_MAX_BYTES", need),
			"GOMEMLIMIT is %s, little for batches of %s: the daemon spends its time collecting garbage", cli.Size(host.GoMemory), cli.Size(l.config.BatchBytes))
	}
	return ok("%s", cli.Size(host.GoMemory))
}

func openFiles(_ context.Context, l *look) Finding {
	const least = 256
	if n := l.config.Host.OpenFiles; n > 0 && n < least {
		return warn(fmt.Sprintf("%d or more", least), "ulimit -n 1024, or LimitNOFILE=1024 in the unit", "%d files may be open: connections may be refused", n)
	}
	return ok("%d may be open", l.config.Host.OpenFiles)
}

func clock(_ context.Context, l *look) Finding {
	switch l.config.Host.Clock {
	case ClockAdrift:
		return warn("a clock that is kept right", "timedatectl set-ntp true", "nothing keeps the clock of this host right")
	case ClockSynchronized:
		return ok("kept right")
	default:
		return skip("this system does not tell")
	}
}

// groupLimit is the smallest memory limit of a control group and of those above it. read gives the text of a file below /sys/fs/cgroup, and
// group the path of the process's own.
func groupLimit(read func(path string) (string, error), group string) int64 {
	least := int64(math.MaxInt64)
	take := func(path string) {
		text, err := read(path)
		if err != nil {
			return // not there, or not of this version of control groups
		}
		var limit int64
		if _, err := fmt.Sscan(strings.TrimSpace(text), &limit); err == nil && limit > 0 { // "max" is none
			least = min(least, limit)
		}
	}
	for {
		take(strings.TrimPrefix(group+"/memory.max", "/"))
		i := strings.LastIndexByte(group, '/')
		if i < 0 {
			break
		}
		group = group[:i]
	}
	take("memory/memory.limit_in_bytes")
	const none = 1 << 60 // version 1 writes a number of this size for none
	if least >= none {
		return 0
	}
	return least
}
