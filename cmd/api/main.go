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
)

func main() { os.Exit(cli.Main("api", run)) }

func run(ctx context.Context) error {
	var settings api.Settings
	program := cli.Program{
		Name:   "api",
		About:  "Serves users over HTTP. Each new user is an event in the outbox of Postgres, written in the same transaction.",
		Prefix: "API_",
	}
	if _, err := program.Parse(&settings); err != nil {
		return err
	}
	log := settings.Logger(os.Stderr)

	pool, err := api.Open(ctx, settings, log)
	if err != nil {
		return err
	}
	defer pool.Close()
	service, err := api.New(pool, settings.Config(log))
	if err != nil {
		return err
	}
	listener, err := new(net.ListenConfig).Listen(ctx, "tcp", string(settings.Addr))
	if err != nil {
		return &cli.Exit{Code: cli.CodeError, Err: fmt.Errorf("listen: %w", err), Hint: "API_ADDR chooses another address"}
	}
	defer systemd.Notify(ctx, systemd.Health{Live: "http://" + listener.Addr().String() + "/livez"}, log)()
	return service.Serve(ctx, listener)
}
