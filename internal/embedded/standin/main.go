// Command standin runs the embedded ClickHouse as the first process of a container, with what the official image takes from its
// environment: for images that stand in for that one where it can't be fetched (.ci/docker).
package main

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/ClickHouse/clickhouse-go/v2"

	"github.com/sluicebox/sluicebox/internal/cli"
	"github.com/sluicebox/sluicebox/internal/embedded"
)

const (
	// The folder and the ports of the official image.
	data              = "/var/lib/clickhouse"
	tcpPort, httpPort = 9000, 8123

	// timeout bounds creating the database, and stopping.
	timeout = 20 * time.Second
)

func main() { os.Exit(cli.Main("standin", run)) } //nolint:forbidigo // only main ends the process

func run(ctx context.Context) error {
	password, err := secret("CLICKHOUSE_PASSWORD")
	if err != nil {
		return err
	}
	// Files in there add users. The embedded one looks for such a folder beside its own file of users.
	if err := os.Symlink("/etc/clickhouse-server/users.d", filepath.Join(data, "users.d")); err != nil && !errors.Is(err, fs.ErrExist) {
		return err
	}
	server, err := embedded.StartClickHouse(ctx, embedded.ClickHouseOptions{
		Dir: data, TCPPort: tcpPort, HTTPPort: httpPort, User: os.Getenv("CLICKHOUSE_USER"), Password: password, Anywhere: true,
	})
	if err != nil {
		return err
	}
	stop := func() error {
		ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), timeout)
		defer cancel()
		return server.Stop(ctx)
	}
	if name := os.Getenv("CLICKHOUSE_DB"); name != "" {
		if err := create(ctx, server.URL("default"), name); err != nil {
			return errors.Join(err, stop())
		}
	}
	<-ctx.Done()
	return stop()
}

// secret is the value of a variable, or what is in the file that the variable with _FILE at its end names.
func secret(name string) (string, error) {
	path := os.Getenv(name + "_FILE")
	if path == "" {
		return os.Getenv(name), nil
	}
	text, err := os.ReadFile(path)
	return strings.TrimRight(string(text), "\r\n"), err
}

func create(ctx context.Context, address, database string) error {
	ctx, cancel := context.WithTimeout(ctx, timeout)
	defer cancel()
	options, err := clickhouse.ParseDSN(address)
	if err != nil {
		return err
	}
	conn, err := clickhouse.Open(options)
	if err != nil {
		return err
	}
	defer func() { _ = conn.Close() }()
	return conn.Exec(ctx, fmt.Sprintf("CREATE DATABASE IF NOT EXISTS `%s`", database))
}
