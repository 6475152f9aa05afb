package main

import (
	"context"
	"fmt"
	"io"
	"net"
	"net/url"
	"strings"
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

// link is a proxy between a program and a database.
type link struct {
	proxy *toxiproxy.Proxy
}

// openLink starts a proxy to the host of a URL, on a port that it keeps while it is down.
func openLink(ctx context.Context, name, target string, port int) (*link, error) {
	u, err := url.Parse(target)
	if err != nil {
		return nil, fmt.Errorf("open link %s: %w", name, err)
	}
	server := toxiproxy.NewServer(toxiproxy.NewMetricsContainer(nil), zerolog.New(io.Discard))
	for range 50 { // somebody else may listen there
		port++
		address := fmt.Sprintf("127.0.0.1:%d", port)
		var config net.ListenConfig
		listener, err := config.Listen(ctx, "tcp", address)
		if err != nil {
			continue
		}
		_ = listener.Close()
		l := &link{proxy: toxiproxy.NewProxy(server, name, address, u.Host)}
		if err := l.proxy.Start(); err == nil {
			return l, nil
		}
	}
	return nil, fmt.Errorf("open link %s: no free port", name)
}

// through is a URL whose host is the link.
func (l *link) through(target string) string {
	u, err := url.Parse(target)
	if err != nil {
		return target
	}
	u.Host = l.proxy.Listen
	return u.String()
}

// add adds a toxic, as JSON, and returns what removes it.
func (l *link) add(toxic string) (heal func(context.Context) error, err error) {
	var added *toxics.ToxicWrapper
	err = l.bounded(func() error {
		var err error
		added, err = l.proxy.Toxics.AddToxicJson(strings.NewReader(toxic))
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("link %s: %w", l.proxy.Name, err)
	}
	return func(ctx context.Context) error {
		return l.bounded(func() error { return l.proxy.Toxics.RemoveToxic(ctx, added.Name) })
	}, nil
}

// bounded does something with the toxics of the link. They can be changed only when data flow: if nobody reads them, the link's
// connections are cut.
func (l *link) bounded(do func() error) error {
	const patience = 2 * time.Second
	done := make(chan error, 1)
	go func() { done <- do() }()
	timer := time.NewTimer(patience)
	defer timer.Stop()
	select {
	case err := <-done:
		return err
	case <-timer.C:
	}
	l.proxy.Stop()
	err := l.proxy.Start()
	if err != nil {
		return err
	}
	return <-done
}

// down refuses connections and cuts those that are open.
func (l *link) down() { l.proxy.Stop() }

func (l *link) up(context.Context) error {
	if l.proxy.Enabled {
		return nil
	}
	return l.proxy.Start()
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
	toxics.Register("count_sent", new(countSent))
	toxics.Register("lose_reply", new(loseReply))
}
