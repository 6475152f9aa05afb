// Command api serves users over HTTP and writes an event of each new one.
package main

import (
	"context"
	"fmt"
	"net"
	"os"

	"github.com/sluicebox/sluicebox/internal/api"
	"github.com/sluicebox/sluicebox/internal/cli"
	"github.com/sluicebox/sluicebox/internal/systemd"
	"github.com/sluicebox/sluicebox/internal/tracing"
)

// grammar is the command line.
type grammar struct {
	Serve  serveCommand  `cmd:"" default:"withargs" help:"Serve until told to stop. It is what api does when no command is given."`
	Health healthCommand `cmd:"" help:"Ask the service on this machine whether it is ready: exit code 0 if so, 1 with the reason if not."`
}

func main() {
	os.Exit(cli.Main("api", func(ctx context.Context) error {
		program := cli.Program{
			Name:   "api",
			About:  "Serves users over HTTP. Each new user is an event in the outbox of Postgres, written in the same transaction.",
			Prefix: "API_",
		}
		return program.Run(ctx, &grammar{})
	}))
}

type serveCommand struct{ api.Settings }

// Run serves until ctx is done.
func (c *serveCommand) Run(ctx context.Context) error {
	log := c.Logger(os.Stderr)
	traces := tracing.Start(ctx, "sluicebox-api", c.FoldingLogger(os.Stderr))
	defer traces.Stop(ctx)
	pool, err := api.Open(ctx, c.Settings, log)
	if err != nil {
		return err
	}
	defer pool.Close()
	config := c.Config(log)
	config.Tracer = traces.Tracer()
	service, err := api.New(pool, config)
	if err != nil {
		return err
	}
	listener, err := new(net.ListenConfig).Listen(ctx, "tcp", string(c.Addr))
	if err != nil {
		return &cli.Exit{Code: cli.CodeError, Err: fmt.Errorf("listen: %w", err), Hint: "API_ADDR chooses another address"}
	}
	defer systemd.Notify(ctx, systemd.Health{Live: "http://" + listener.Addr().String() + "/livez"}, log)()
	return service.Serve(ctx, listener)
}

type healthCommand struct {
	Addr cli.Addr `env:"API_ADDR" default:"127.0.0.1:8080" help:"Address that the service listens on."`
}

// Run asks.
func (c *healthCommand) Run(ctx context.Context) error {
	return cli.Health(ctx, c.Addr, os.Stdout)
}
