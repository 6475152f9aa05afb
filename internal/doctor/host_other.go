//go:build !linux

package doctor

import "runtime/debug"

// ReadHost looks at this machine. What it can't see stays zero.
func ReadHost() Host { return Host{GoMemory: debug.SetMemoryLimit(-1)} }
