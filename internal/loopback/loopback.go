// Package loopback tells what stays within this machine.
package loopback

import (
	"net"
	"net/netip"
	"strings"
)

// Host tells whether a host, with or without a port, names this machine as only its own programs do: localhost, or an address of loopback.
// It does not look the host up.
func Host(host string) bool {
	if name, _, err := net.SplitHostPort(host); err == nil {
		host = name
	}
	if host == "localhost" {
		return true
	}
	ip, err := netip.ParseAddr(strings.Trim(host, "[]"))
	return err == nil && ip.Unmap().IsLoopback()
}
