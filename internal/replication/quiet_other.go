//go:build !linux

package replication

import "net"

// quiet exists on Linux only; see quiet_linux.go.
type quiet struct{ net.Conn }

func hush(net.Conn) (*quiet, error) { return nil, nil }

func (*quiet) buffered() int { return 0 }
