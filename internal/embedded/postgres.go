package embedded

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/url"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"time"
)

const (
	// superuser is the role that URL connects as.
	superuser = "postgres"
	// stopTimeout bounds an orderly shutdown, which has a checkpoint to write, before the server is killed.
	stopTimeout = 20 * time.Second
	// startTimeout bounds a start, if ctx does not: a crash recovery may be part of it.
	startTimeout = 60 * time.Second
	// startPoll is the pause between two looks whether a server answers.
	startPoll = 10 * time.Millisecond
	// socketPathMax is what the kernel allows for the path of a Unix socket.
	socketPathMax = 107
)

// PostgresOptions says how to run Postgres. The zero value is a server on a free port whose data are removed by Stop.
type PostgresOptions struct {
	// Dir holds data, password and log. A Dir with data in it is used as it is; its folder data may be an empty file system of its own.
	// Empty: a temporary directory, removed by Stop.
	Dir string
	// Port is on loopback. 0: a free one.
	Port int
	// Settings are server parameters (as in postgresql.conf) over the defaults: logical decoding, 32 slots and senders.
	Settings map[string]string
	// NoSync gives up durability against a crash of the machine for speed: fsync off.
	NoSync bool
	// Log gets a copy of the server's log, which is also in Dir.
	Log io.Writer
	// Env is added to the server's environment, as NAME=value.
	Env []string
}

// Postgres is a server that runs as a child process. Its methods may be called by several goroutines.
type Postgres struct {
	// Dir holds data, password and log.
	Dir string

	options  PostgresOptions
	port     int
	password string
	programs string // folder of initdb and postgres
	as       *account
	temp     *scratch // socket, and everything if Dir was not given
	sockets  string   // folder of the socket

	mu      sync.Mutex // held by what starts and stops
	server  *process   // nil before the first start
	removed bool       // Dir was temporary, and is gone
}

// StartPostgres makes a database cluster, unless options.Dir has one, and starts a server on it. It returns once the server has
// answered a query. Give ctx a deadline; it is not used after the return.
func StartPostgres(ctx context.Context, options PostgresOptions) (_ *Postgres, err error) {
	if err := supported(); err != nil {
		return nil, err
	}
	ctx, cancel := context.WithTimeout(ctx, startTimeout)
	defer cancel()
	p := &Postgres{options: options}
	if p.as, err = unprivileged(); err != nil {
		return nil, err
	}
	if p.programs, err = programsDir(p.as); err != nil {
		return nil, err
	}
	if p.temp, err = newScratch(); err != nil {
		return nil, err
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, p.temp.remove())
		}
	}()
	if err := p.prepare(ctx); err != nil {
		return nil, fmt.Errorf("prepare Postgres: %w", err)
	}
	for range startAttempts {
		if p.port, err = portOr(ctx, options.Port); err != nil {
			return nil, err
		}
		if err = p.start(ctx); err == nil || options.Port != 0 || portFree(ctx, p.port) {
			break
		}
	}
	if err != nil {
		return nil, err
	}
	return p, nil
}

// prepare makes directories, password and cluster.
func (p *Postgres) prepare(ctx context.Context) error {
	p.Dir = p.options.Dir
	if p.Dir == "" {
		p.Dir = p.temp.path
	}
	var err error
	if p.Dir, err = filepath.Abs(p.Dir); err != nil {
		return err
	}
	if err := os.MkdirAll(p.Dir, 0o755); err != nil { //nolint:gosec // the account has to pass through; data are in a closed one
		return err
	}
	if err := p.as.letIn(p.Dir); err != nil {
		return err
	}
	if err := p.as.letIn(p.temp.path); err != nil {
		return err
	}
	p.sockets = filepath.Join(p.temp.path, "socket")
	if len(p.sockets)+len("/.s.PGSQL.65535") > socketPathMax {
		return fmt.Errorf("the temporary directory %s has too long a path for a socket: set TMPDIR", os.TempDir())
	}
	if exists(filepath.Join(p.data(), "PG_VERSION")) {
		password, err := os.ReadFile(p.passwordFile())
		p.password = strings.TrimSpace(string(password))
		return err
	}
	p.password = newPassword()
	return p.initialize(ctx)
}

func (p *Postgres) data() string         { return filepath.Join(p.Dir, "data") }
func (p *Postgres) log() string          { return filepath.Join(p.Dir, "postgres.log") }
func (p *Postgres) passwordFile() string { return filepath.Join(p.Dir, "password") }

// URL is the address of a database over TCP.
func (p *Postgres) URL(database string) string {
	u := url.URL{
		Scheme: "postgres", User: url.UserPassword(superuser, p.password), Host: address(p.port), Path: "/" + database,
		RawQuery: "sslmode=disable",
	}
	return u.String()
}

// SocketURL is the address of a database over the Unix socket.
func (p *Postgres) SocketURL(database string) string {
	u := url.URL{
		Scheme: "postgres", User: url.UserPassword(superuser, p.password), Path: "/" + database,
		RawQuery: url.Values{"host": {p.sockets}, "port": {strconv.Itoa(p.port)}, "sslmode": {"disable"}}.Encode(),
	}
	return u.String()
}

// Start starts the server again after Stop (if it has a Dir of its own) or Kill, on the same data and port.
func (p *Postgres) Start(ctx context.Context) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	ctx, cancel := context.WithTimeout(ctx, startTimeout)
	defer cancel()
	return p.start(ctx)
}

// Restart shuts the server down, in mode fast or immediate (which is a crash, with a recovery), and starts it again.
func (p *Postgres) Restart(ctx context.Context, mode string) error {
	if mode != "fast" && mode != "immediate" {
		return fmt.Errorf("restart Postgres: mode %q is neither fast nor immediate", mode)
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	ctx, cancel := context.WithTimeout(ctx, stopTimeout+startTimeout)
	defer cancel()
	p.shutDown(ctx, mode)
	return p.start(ctx)
}

// Kill ends the server and its backends with SIGKILL. Start or Restart brings it back, with a recovery.
func (p *Postgres) Kill() {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.server != nil {
		p.server.kill()
	}
}

// Pause stops the server and its backends in their tracks, so that connections hang. Kill and Stop work on a paused server.
func (p *Postgres) Pause() {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.server != nil {
		p.server.pause()
	}
}

// Resume lets a paused server go on.
func (p *Postgres) Resume() {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.server != nil {
		p.server.resume()
	}
}

// Stop shuts the server down in mode fast, kills it if that takes too long or ctx ends, and removes the temporary directory.
func (p *Postgres) Stop(ctx context.Context) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.shutDown(ctx, "fast")
	if p.temp == nil {
		return nil
	}
	if p.server != nil {
		freeShared(p.data(), p.server.cmd.Process.Pid)
	}
	p.removed = p.options.Dir == ""
	err := p.temp.remove()
	p.temp = nil
	if err != nil {
		return fmt.Errorf("stop Postgres: %w", err)
	}
	return nil
}

func (p *Postgres) shutDown(ctx context.Context, mode string) {
	if p.server == nil || p.server.ended() {
		return
	}
	p.server.resume()
	if mode == "immediate" {
		p.server.immediate()
	} else {
		p.server.fast()
	}
	patience := time.NewTimer(stopTimeout)
	defer patience.Stop()
	select {
	case <-p.server.done:
	case <-patience.C:
		p.server.kill()
	case <-ctx.Done():
		p.server.kill()
	}
}
