package replication

import (
	"net"
	"path/filepath"
	"testing"

	"golang.org/x/net/nettest"
)

// A quiet connection is a net.Conn in every respect: the suite that Go's own connections pass.
func TestQuiet(t *testing.T) {
	for network, address := range map[string]string{"tcp": "127.0.0.1:0", "unix": filepath.Join(t.TempDir(), "socket")} {
		t.Run(network, func(t *testing.T) {
			nettest.TestConn(t, func() (net.Conn, net.Conn, func(), error) { return quietPair(t, network, address) })
		})
	}
}

func quietPair(t *testing.T, network, address string) (one, other net.Conn, stop func(), err error) {
	t.Helper()
	var listening net.ListenConfig
	listener, err := listening.Listen(t.Context(), network, address)
	if err != nil {
		return nil, nil, nil, err
	}
	defer func() { _ = listener.Close() }()
	accepted := make(chan net.Conn, 1)
	go func() {
		conn, err := listener.Accept()
		if err != nil {
			t.Error(err)
		}
		accepted <- conn
	}()
	var dialer net.Dialer
	dialed, err := dialer.DialContext(t.Context(), network, listener.Addr().String())
	if err != nil {
		return nil, nil, nil, err
	}
	q, err := hush(dialed)
	if err != nil {
		return nil, nil, nil, err
	}
	peer := <-accepted
	return q, peer, func() { _, _ = q.Close(), peer.Close() }, nil
}
