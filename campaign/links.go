package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/url"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/Shopify/toxiproxy/v2"
	"github.com/Shopify/toxiproxy/v2/toxics"
	"github.com/rs/zerolog"
)

// The connections that a link can break.
const (
	linkSQL         = "sql"         // daemon → Postgres
	linkReplication = "replication" // daemon → Postgres, the stream
	linkClickHouse  = "clickhouse"  // daemon → ClickHouse
	linkWriters     = "writers"     // writers and API → Postgres
)

// link is a proxy between a program and a database:
//
//	program ─▶ toxiproxy, which has the faults ─▶ hop, which can cut everything ─▶ database
type link struct {
	name    string
	address string // on which programs reach it, for as long as it lives
	hop     *hop

	mu    sync.Mutex
	proxy *toxiproxy.Proxy
}

// openLink starts a proxy to the host of a URL.
func openLink(ctx context.Context, name, target string, port int) (*link, error) {
	u, err := url.Parse(target)
	if err != nil {
		return nil, fmt.Errorf("open link %s: %w", name, err)
	}
	hop, err := openHop(ctx, u.Host)
	if err != nil {
		return nil, fmt.Errorf("open link %s: %w", name, err)
	}
	for range 50 { // somebody else may listen there
		port++
		l := &link{name: name, address: fmt.Sprintf("127.0.0.1:%d", port), hop: hop}
		var config net.ListenConfig
		listener, err := config.Listen(ctx, "tcp", l.address)
		if err != nil {
			continue
		}
		_ = listener.Close()
		if l.renew() == nil {
			return l, nil
		}
	}
	return nil, fmt.Errorf("open link %s: no free port", name)
}

// renew puts a new proxy in the place of the one that has ended, whose port may take a moment to be free.
func (l *link) renew() (err error) {
	const tries, pause = 100, 20 * time.Millisecond
	for range tries {
		server := toxiproxy.NewServer(toxiproxy.NewMetricsContainer(nil), zerolog.New(io.Discard))
		l.proxy = toxiproxy.NewProxy(server, l.name, l.address, l.hop.address)
		if err = l.proxy.Start(); err == nil {
			return nil
		}
		<-time.After(pause)
	}
	return fmt.Errorf("start a proxy again: %w", err)
}

// through is a URL whose host is the link.
func (l *link) through(target string) string {
	u, err := url.Parse(target)
	if err != nil {
		return target
	}
	u.Host = l.address
	return u.String()
}

// add adds a toxic, as JSON, and returns what removes it.
func (l *link) add(toxic string) (heal func(context.Context) error, err error) {
	names := make(chan string, 1) // of the toxic, once it is there: a proxy that hangs is given up without
	l.mu.Lock()
	proxy := l.proxy
	l.mu.Unlock()
	err = l.bounded(func() error {
		added, err := proxy.Toxics.AddToxicJson(strings.NewReader(toxic))
		if err == nil {
			names <- added.Name
		}
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("link %s: %w", l.name, err)
	}
	return func(ctx context.Context) error {
		select {
		case name := <-names:
			return l.bounded(func() error {
				if err := proxy.Toxics.RemoveToxic(ctx, name); !errors.Is(err, toxiproxy.ErrToxicNotFound) {
					return err
				}
				return nil
			})
		default:
			return nil
		}
	}, nil
}

// bounded does something with the toxics of the link. Toxiproxy can hang there for good when a program dies at the same moment: the writer of
// its connection waits for the lock that is held while the connection's toxics wait for the writer. Such a proxy is given up for a new one.
func (l *link) bounded(do func() error) error {
	const patience = 3 * time.Second
	done := make(chan error, 1)
	go func() { done <- do() }()
	timer := time.NewTimer(patience)
	defer timer.Stop()
	select {
	case err := <-done:
		return err
	case <-timer.C:
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	l.halt()
	return l.renew()
}

// halt ends the proxy. If it hangs, its listener is closed all the same, and the hop ends its connections.
func (l *link) halt() {
	const patience = 2 * time.Second
	done := make(chan struct{})
	go func(proxy *toxiproxy.Proxy) {
		proxy.Stop()
		close(done)
	}(l.proxy)
	timer := time.NewTimer(patience)
	defer timer.Stop()
	select {
	case <-done:
	case <-timer.C:
		l.hop.cut()
	}
}

// down refuses connections and cuts those that are open.
func (l *link) down() {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.halt()
}

func (l *link) up(context.Context) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.renew()
}

// hop passes connections on, and can close all of them.
type hop struct {
	address  string
	target   string
	listener net.Listener

	mu    sync.Mutex
	conns map[net.Conn]struct{}
}

func openHop(ctx context.Context, target string) (*hop, error) {
	var config net.ListenConfig
	listener, err := config.Listen(ctx, "tcp", "127.0.0.1:0")
	if err != nil {
		return nil, err
	}
	h := &hop{address: listener.Addr().String(), target: target, listener: listener, conns: map[net.Conn]struct{}{}}
	go h.accept(context.WithoutCancel(ctx))
	return h, nil
}

func (h *hop) accept(ctx context.Context) {
	dialer := net.Dialer{Timeout: 5 * time.Second}
	for {
		client, err := h.listener.Accept()
		if err != nil {
			return
		}
		go func() {
			server, err := dialer.DialContext(ctx, "tcp", h.target)
			if err != nil {
				_ = client.Close()
				return
			}
			h.pass(client, server)
		}()
	}
}

// pass copies both ways until one side ends, and ends the other one then.
func (h *hop) pass(client, server net.Conn) {
	h.mu.Lock()
	h.conns[client], h.conns[server] = struct{}{}, struct{}{}
	h.mu.Unlock()
	end := func() {
		_ = client.Close()
		_ = server.Close()
	}
	go func() {
		defer end()
		_, _ = io.Copy(server, client) // how a connection ends is the business of its ends
	}()
	_, _ = io.Copy(client, server)
	end()
	h.mu.Lock()
	defer h.mu.Unlock()
	delete(h.conns, client)
	delete(h.conns, server)
}

// cut closes every connection.
func (h *hop) cut() {
	h.mu.Lock()
	defer h.mu.Unlock()
	for conn := range h.conns {
		_ = conn.Close()
	}
}

// close ends the hop.
func (h *hop) close() {
	_ = h.listener.Close()
	h.cut()
}

// sent counts the bytes that have gone to ClickHouse since it last answered. One insert is in flight at a time.
var sent atomic.Int64 //nolint:gochecknoglobals // toxiproxy makes toxics by name, so there is no other way to hand it to both

// countSent is the half of a lost reply that watches what is sent.
type countSent struct{}

// Pipe passes everything on.
func (*countSent) Pipe(stub *toxics.ToxicStub) {
	for {
		select {
		case <-stub.Interrupt:
			return
		case c := <-stub.Input:
			if c == nil {
				stub.Close()
				return
			}
			sent.Add(int64(len(c.Data)))
			stub.Output <- c
		}
	}
}

// loseReply is the other half: once a block has been sent, what ClickHouse says to it is lost. Handshakes and look-ups pass.
type loseReply struct{}

// blockSize is more bytes than anything has that is not a block of some rows.
const blockSize = 3 << 10

// Pipe passes on what is no reply to a block.
func (*loseReply) Pipe(stub *toxics.ToxicStub) {
	for {
		select {
		case <-stub.Interrupt:
			return
		case c := <-stub.Input:
			switch {
			case c == nil:
				stub.Close()
				return
			case sent.Load() > blockSize:
			default:
				sent.Store(0)
				stub.Output <- c
			}
		}
	}
}

// Cleanup cuts the connection, in whose stream something is missing.
func (*loseReply) Cleanup(stub *toxics.ToxicStub) {
	sent.Store(0)
	stub.Close()
}

// registerToxics must be called before links are opened.
func registerToxics() {
	zerolog.SetGlobalLevel(zerolog.Disabled) // toxiproxy tells of each toxic; nothing else here has a logger
	toxics.Register("count_sent", new(countSent))
	toxics.Register("lose_reply", new(loseReply))
}
