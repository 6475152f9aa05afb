package main

import (
	"context"
	"os"

	"github.com/sluicebox/sluicebox/internal/cli"
)

type healthCommand struct {
	AdminAddr cli.Addr `env:"CDC_ADMIN_ADDR" default:"127.0.0.1:8081" help:"Admin address of the daemon."`
}

// Run asks.
func (c *healthCommand) Run(ctx context.Context) error {
	return cli.Health(ctx, c.AdminAddr, os.Stdout)
}
