package embedded

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"net/url"
	"os"
	"path/filepath"
	"sync"
	"time"
)

const (
	// childVariable is set, to the path of libchdb.so, in the environment of a process that is to be a ClickHouse server.
	childVariable = "SLUICEBOX_CLICKHOUSE_CHILD"
	// interactive is the first argument of a server that survives what its clients do to it; see openTerminal.
	interactive = "--interactive"
	// clickHouseUser is the user for clients, unless the options name another. It can't be the default one, which has to be without a
	// password.
	clickHouseUser = "sluicebox"
	// clickHouseStop bounds an orderly end before the server is killed. That end takes less than 0.1 s, but 5 s while a client is
	// connected, as an idle pool is. Nothing is lost by killing it: what it has acknowledged survives that.
	clickHouseStop = 700 * time.Millisecond
	// restartPause is the pause before a server that died is started again; it doubles up to restartPauseMax while starts fail
	// or the server dies within restartPauseMax.
	restartPause    = 20 * time.Millisecond
	restartPauseMax = 5 * time.Second
)

// ClickHouseOptions says how to run ClickHouse. The zero value is a server on free ports whose data are removed by Stop.
type ClickHouseOptions struct {
	// Dir holds data, configuration and log. A Dir with data in it is used as it is. Empty: a temporary directory, removed by Stop.
	Dir string
	// TCPPort (native protocol) and HTTPPort are on loopback. 0: free ones, kept across restarts.
	TCPPort, HTTPPort int
	// User is the user for clients, with every right; not default. Empty: sluicebox.
	User string
	// Password is that of the user for clients. Empty: a generated one.
	Password string
	// Anywhere lets clients of other machines in: for a container, whose network decides who they are.
	Anywhere bool
	// MaxMemory limits the server, in bytes. 0: ClickHouse's own limit, 90 % of the machine.
	MaxMemory int64
	// Settings are those of the profile of the user for clients, which hold for queries that do not set them.
	Settings map[string]string
	// Users are more users, each with the password of the user for clients and the rights that the GRANT statements give.
	Users map[string][]string
	// NonInteractive runs the server so that it aborts when a client misbehaves, by a wrong password for example: a source of
	// abrupt ends for fault tests.
	NonInteractive bool
}

// ClickHouse is a server that runs as a child process and is started again when it dies by itself. Its methods may be called by
// several goroutines.
type ClickHouse struct {
	// Dir holds data, configuration and log.
	Dir string

	options           ClickHouseOptions
	library           string
	tcpPort, httpPort int
	password          string
	temp              *scratch // nil if Dir was given

	ops      sync.Mutex         // held by what starts and stops
	unwatch  context.CancelFunc // ends the watching; nil when nobody watches
	watching sync.WaitGroup
	removed  bool // Dir was temporary, and is gone

	mu       sync.Mutex // guards what the watcher changes
	server   *server
	restarts int
}

// server is a running child.
type server struct {
	*process

	lifeline *os.File // closed, it ends the child
}

// StartClickHouse starts a server. It returns once the server has answered a query by both protocols. Give ctx a deadline; it is
// not used after the return.
func StartClickHouse(ctx context.Context, options ClickHouseOptions) (_ *ClickHouse, err error) {
	if err := supported(); err != nil {
		return nil, err
	}
	dir, _, err := packageDir("@chdb/lib-linux-" + npmArch() + "-gnu")
	if err != nil {
		return nil, err
	}
	c := &ClickHouse{Dir: options.Dir, options: options, library: filepath.Join(dir, "libchdb.so"), password: options.Password}
	if _, err := os.Stat(c.library); err != nil {
		return nil, fmt.Errorf("find ClickHouse: %w: %s", err, fetch)
	}
	c.options.User = cmp.Or(c.options.User, clickHouseUser)
	if c.password == "" {
		c.password = newPassword()
	}
	if c.Dir == "" {
		if c.temp, err = newScratch(); err != nil {
			return nil, err
		}
		c.Dir = c.temp.path
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, c.temp.remove())
		}
	}()
	if c.Dir, err = filepath.Abs(c.Dir); err != nil {
		return nil, err
	}
	if err := os.MkdirAll(c.Dir, 0o700); err != nil {
		return nil, err
	}
	if err := c.startOnFreePorts(ctx); err != nil {
		return nil, err
	}
	c.watch() //nolint:contextcheck // it goes on after the call that started it
	return c, nil
}

func (c *ClickHouse) startOnFreePorts(ctx context.Context) (err error) {
	for range startAttempts {
		if c.tcpPort, err = portOr(ctx, c.options.TCPPort); err != nil {
			return err
		}
		if c.httpPort, err = portOr(ctx, c.options.HTTPPort); err != nil {
			return err
		}
		err = c.start(ctx)
		taken := c.options.TCPPort == 0 && !portFree(ctx, c.tcpPort) || c.options.HTTPPort == 0 && !portFree(ctx, c.httpPort)
		if err == nil || !taken {
			return err
		}
	}
	return err
}

func (c *ClickHouse) data() string   { return filepath.Join(c.Dir, "data") }
func (c *ClickHouse) log() string    { return filepath.Join(c.Dir, "clickhouse.log") }
func (c *ClickHouse) config() string { return filepath.Join(c.Dir, "config.xml") }
func (c *ClickHouse) users() string  { return filepath.Join(c.Dir, "users.xml") }

// URL is the address of a database by the native protocol.
func (c *ClickHouse) URL(database string) string { return c.url("clickhouse", c.tcpPort, database) }

// HTTPURL is the address of a database by HTTP.
func (c *ClickHouse) HTTPURL(database string) string { return c.url("http", c.httpPort, database) }

func (c *ClickHouse) url(scheme string, port int, database string) string {
	u := url.URL{Scheme: scheme, User: url.UserPassword(c.options.User, c.password), Host: address(port), Path: "/" + database}
	return u.String()
}

// Restarts is how often the server was started again because it had died by itself.
func (c *ClickHouse) Restarts() int {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.restarts
}

// PID is the process of the server, which is another one after a restart.
func (c *ClickHouse) PID() int {
	return c.current().cmd.Process.Pid
}

func (c *ClickHouse) current() *server {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.server
}

// Restart ends the server, if it runs, and starts it on the same data and ports.
func (c *ClickHouse) Restart(ctx context.Context) error {
	c.ops.Lock()
	defer c.ops.Unlock()
	if c.removed {
		return errors.New("restart ClickHouse: its data were in a temporary directory, which Stop has removed")
	}
	c.stopWatching()
	c.current().end(ctx)
	if err := c.start(ctx); err != nil {
		return err
	}
	c.watch() //nolint:contextcheck // it goes on after the call that started it
	return nil
}

// Kill ends the server with SIGKILL. It stays down until Restart.
func (c *ClickHouse) Kill() {
	c.ops.Lock()
	defer c.ops.Unlock()
	c.stopWatching()
	c.current().kill()
}

// Pause stops the server in its tracks, so that connections hang. Kill, Restart and Stop work on a paused server.
func (c *ClickHouse) Pause() { c.current().pause() }

// Resume lets a paused server go on.
func (c *ClickHouse) Resume() { c.current().resume() }

// Stop ends the server, kills it if that takes too long or ctx ends, and removes the temporary directory.
func (c *ClickHouse) Stop(ctx context.Context) error {
	c.ops.Lock()
	defer c.ops.Unlock()
	c.stopWatching()
	c.current().end(ctx)
	if c.temp == nil {
		return nil
	}
	err := c.temp.remove()
	c.temp, c.removed = nil, true
	if err != nil {
		return fmt.Errorf("stop ClickHouse: %w", err)
	}
	return nil
}

// watch starts the server again whenever it dies.
func (c *ClickHouse) watch() {
	var ctx context.Context
	ctx, c.unwatch = context.WithCancel(context.Background())
	c.watching.Go(func() {
		pause, died := restartPause, c.current()
		for {
			started := time.Now()
			select {
			case <-died.done:
			case <-ctx.Done():
				return
			}
			if time.Since(started) > restartPauseMax {
				pause = restartPause
			}
			select {
			case <-time.After(pause):
			case <-ctx.Done():
				return
			}
			pause = min(2*pause, restartPauseMax)
			if c.start(ctx) == nil {
				c.mu.Lock()
				died = c.server
				c.restarts++
				c.mu.Unlock()
			}
		}
	})
}

func (c *ClickHouse) stopWatching() {
	if c.unwatch != nil {
		c.unwatch()
		c.unwatch = nil
	}
	c.watching.Wait()
}

// end ends the child in an orderly way.
func (s *server) end(ctx context.Context) {
	s.resume()
	_ = s.lifeline.Close()
	patience := time.NewTimer(clickHouseStop)
	defer patience.Stop()
	select {
	case <-s.done:
	case <-patience.C:
		s.kill()
	case <-ctx.Done():
		s.kill()
	}
}
