package testdb

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"os"
	"strings"
	"time"

	"github.com/testcontainers/testcontainers-go"
	"github.com/testcontainers/testcontainers-go/wait"
)

// engineAnswers says whether a Docker engine can be reached.
func engineAnswers(ctx context.Context) (answers bool) {
	defer func() { // the library panics when it finds no way to an engine at all
		if recover() != nil {
			answers = false
		}
	}()
	ctx, cancel := context.WithTimeout(ctx, 5*time.Second)
	defer cancel()
	provider, err := testcontainers.NewDockerProvider()
	if err != nil {
		return false
	}
	defer func() { _ = provider.Close() }()
	return provider.Health(ctx) == nil
}

// startContainers starts both servers as containers, of the images POSTGRES_IMAGE and CLICKHOUSE_IMAGE.
func startContainers(ctx context.Context) (*stores, error) {
	if !engineAnswers(ctx) {
		return nil, errors.New("no Docker engine answers; start one, or run the tests with TEST_STORES=embedded")
	}
	const password = "test"
	command := []string{"postgres", "-c", "wal_level=logical", "-c", "fsync=off"}
	for name, value := range lightSettings() {
		command = append(command, "-c", name+"="+value)
	}
	postgres, err := testcontainers.Run(ctx, cmp.Or(os.Getenv("POSTGRES_IMAGE"), "postgres:18"),
		testcontainers.WithEnv(map[string]string{"POSTGRES_PASSWORD": password}),
		testcontainers.WithCmd(command...),
		testcontainers.WithExposedPorts("5432/tcp"),
		// It starts twice: once for its own set-up, on a socket only, and then for good.
		testcontainers.WithWaitStrategy(wait.ForLog("database system is ready to accept connections").WithOccurrence(2), wait.ForListeningPort("5432/tcp")),
	)
	if err != nil {
		return nil, fmt.Errorf("start Postgres in a container: %w", err)
	}
	clickhouse, err := testcontainers.Run(ctx, cmp.Or(os.Getenv("CLICKHOUSE_IMAGE"), "clickhouse/clickhouse-server:26.3"),
		testcontainers.WithEnv(map[string]string{"CLICKHOUSE_USER": "sluicebox", "CLICKHOUSE_PASSWORD": password}),
		testcontainers.WithExposedPorts("9000/tcp", "8123/tcp"),
		testcontainers.WithWaitStrategy(wait.ForHTTP("/ping").WithPort("8123/tcp"), wait.ForListeningPort("9000/tcp")),
	)
	if err != nil {
		return nil, errors.Join(fmt.Errorf("start ClickHouse in a container: %w", err), postgres.Terminate(ctx))
	}
	s := &stores{lingers: true, stop: func(ctx context.Context) error {
		return errors.Join(clickhouse.Terminate(ctx), postgres.Terminate(ctx))
	}}
	for _, e := range []struct {
		container   testcontainers.Container
		port, user  string
		scheme, end string
		to          *string
	}{
		{postgres, "5432/tcp", "postgres", "postgres", "/postgres?sslmode=disable", &s.postgres},
		{clickhouse, "9000/tcp", "sluicebox", "clickhouse", "/default", &s.clickhouse},
		{clickhouse, "8123/tcp", "sluicebox", "http", "/default", &s.clickhouseHTTP},
	} {
		endpoint, err := e.container.PortEndpoint(ctx, e.port, e.scheme)
		if err != nil {
			return nil, errors.Join(fmt.Errorf("find the port of a container: %w", err), s.stop(ctx))
		}
		*e.to = strings.Replace(endpoint, "://", "://"+e.user+":"+password+"@", 1) + e.end
	}
	return s, nil
}
