package embedded

import (
	"context"
	"errors"
	"fmt"
	"io"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/jackc/pgx/v5"
)

// settingsFile is included by postgresql.conf. Settings are not on the command line, so that ALTER SYSTEM can change them.
const settingsFile = "sluicebox.conf"

// settings are the server parameters that options and defaults make.
func (p *Postgres) settings() map[string]string {
	all := map[string]string{
		"wal_level":             "logical",
		"max_wal_senders":       "32",
		"max_replication_slots": "32",
		// Files of the data directory, not of /dev/shm, where those of a killed server would stay.
		"dynamic_shared_memory_type": "mmap",
	}
	if p.options.NoSync {
		all["fsync"] = "off"
		all["full_page_writes"] = "off"
	}
	maps.Copy(all, p.options.Settings)
	return all
}

// initialize makes the cluster.
func (p *Postgres) initialize(ctx context.Context) error {
	if err := os.MkdirAll(p.data(), 0o700); err != nil {
		return err
	}
	if err := p.as.own(p.data()); err != nil {
		return err
	}
	if err := os.WriteFile(p.passwordFile(), []byte(p.password+"\n"), 0o600); err != nil {
		return err
	}
	if err := p.as.own(p.passwordFile()); err != nil {
		return err
	}
	args := []string{
		"--pgdata=" + p.data(), "--username=" + superuser, "--pwfile=" + p.passwordFile(), "--auth=scram-sha-256",
		"--encoding=UTF8",
	}
	// Texts are ordered by their bytes, and upper and lower case are Unicode's.
	switch major, err := majorVersion(ctx, p.programs); {
	case err != nil:
		return err
	case major < 17: // it takes them from the machine
		args = append(args, "--locale=C.UTF-8")
	default:
		args = append(args, "--locale-provider=builtin", "--builtin-locale=C.UTF-8", "--locale=C")
	}
	if p.options.NoSync {
		args = append(args, "--no-sync")
	}
	made, err := p.spawn(ctx, "initdb", args...)
	if err != nil {
		return err
	}
	select {
	case <-made.done:
	case <-ctx.Done():
		made.kill()
		return fmt.Errorf("initdb: %w", ctx.Err())
	}
	if made.err != nil {
		return fmt.Errorf("initdb: %w; %s", made.err, tail(p.log()))
	}
	conf, err := os.OpenFile(filepath.Join(p.data(), "postgresql.conf"), os.O_APPEND|os.O_WRONLY, 0)
	if err != nil {
		return err
	}
	_, err = io.WriteString(conf, "include_if_exists '"+settingsFile+"'\n")
	return errors.Join(err, conf.Close())
}

// configure writes the settings.
func (p *Postgres) configure() error {
	settings := p.settings()
	var conf strings.Builder
	for _, name := range slices.Sorted(maps.Keys(settings)) {
		fmt.Fprintf(&conf, "%s = '%s'\n", name, strings.ReplaceAll(strings.ReplaceAll(settings[name], `\`, `\\`), "'", "''"))
	}
	path := filepath.Join(p.data(), settingsFile)
	if err := os.WriteFile(path, []byte(conf.String()), 0o600); err != nil {
		return err
	}
	if err := p.as.own(path); err != nil {
		return err
	}
	if err := os.MkdirAll(p.sockets, 0o700); err != nil {
		return err
	}
	return p.as.own(p.sockets)
}

// start starts the server and waits until it answers.
func (p *Postgres) start(ctx context.Context) (err error) {
	switch {
	case p.removed:
		return errors.New("start Postgres: its data were in a temporary directory, which Stop has removed")
	case p.server != nil && !p.server.ended():
		return errors.New("start Postgres: it is running")
	}
	if p.temp == nil { // a start after Stop
		if p.temp, err = newScratch(); err != nil {
			return err
		}
		if err := p.as.letIn(p.temp.path); err != nil {
			return err
		}
		p.sockets = filepath.Join(p.temp.path, "socket")
	}
	if err := p.configure(); err != nil {
		return fmt.Errorf("configure Postgres: %w", err)
	}
	server, err := p.spawn(ctx, "postgres", "-D", p.data(),
		"-c", "listen_addresses="+loopback, "-c", "port="+strconv.Itoa(p.port), "-c", "unix_socket_directories="+p.sockets)
	if err != nil {
		return err
	}
	if err := p.ready(ctx, server); err != nil {
		server.kill()
		return fmt.Errorf("start Postgres: %w; %s", err, tail(p.log()))
	}
	p.server = server
	return nil
}

// ready waits until the server has answered a query.
func (p *Postgres) ready(ctx context.Context, server *process) error {
	tick := time.NewTicker(startPoll)
	defer tick.Stop()
	var last error
	for {
		if last = p.ping(ctx); last == nil && !server.ended() {
			return nil
		}
		select {
		case <-tick.C:
		case <-server.done:
			return server.how()
		case <-ctx.Done():
			return fmt.Errorf("it does not answer: %w", errors.Join(ctx.Err(), last))
		}
	}
}

func (p *Postgres) ping(ctx context.Context) error {
	conn, err := pgx.Connect(ctx, p.URL("postgres"))
	if err != nil {
		return err
	}
	defer func() { _ = conn.Close(context.WithoutCancel(ctx)) }()
	var one int
	return conn.QueryRow(ctx, "SELECT 1").Scan(&one)
}

// spawn starts a program of the package.
func (p *Postgres) spawn(ctx context.Context, name string, args ...string) (*process, error) {
	log, err := os.OpenFile(p.log(), os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		return nil, err
	}
	// Not killed by ctx: it ends by kill, which knows its backends.
	cmd := exec.CommandContext(context.WithoutCancel(ctx), filepath.Join(p.programs, name), args...)
	cmd.Dir = p.Dir // the account may not be let into ours
	// The parent's PG* variables and locale are not for this server.
	cmd.Env = append([]string{"PATH=/usr/bin:/bin", "LC_ALL=C", "TZ=UTC"}, p.options.Env...)
	cmd.Stdout, cmd.Stderr = log, log
	if p.options.Log != nil {
		copied := io.MultiWriter(log, p.options.Log)
		cmd.Stdout, cmd.Stderr = copied, copied
		cmd.WaitDelay = time.Second // a backend that lives a moment longer holds the pipe
	}
	started, err := spawn(cmd, quit, p.as)
	if err != nil {
		_ = log.Close()
		return nil, err
	}
	if p.options.Log == nil {
		_ = log.Close() // the child has its own
		return started, nil
	}
	go func() {
		<-started.done
		_ = log.Close()
	}()
	return started, nil
}
