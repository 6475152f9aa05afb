// Command demo shows the whole of Sluicebox on this machine: it starts a real Postgres and a real ClickHouse, the API and the
// daemon, creates users over HTTP and holds both sides against each other. Nothing of it survives but what it prints.
package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"golang.org/x/sync/errgroup"

	"github.com/sluicebox/sluicebox/internal/cli"
	"github.com/sluicebox/sluicebox/internal/embedded"
)

// settings are the command line.
type settings struct {
	Users int  `default:"1000" min:"1" max:"10000000" help:"Users to create."`
	Rate  int  `default:"0" min:"0" max:"1000000" help:"Users a second; 0: as fast as they can be created."`
	Exit  bool `help:"End after the summary, with exit code 1 unless every count agrees. Default: stay up until Ctrl-C."`
	JSON  bool `name:"json" help:"Print the summary as JSON, and progress to standard error."`
}

func main() {
	os.Exit(cli.Main("demo", func(ctx context.Context) error {
		var s settings
		program := cli.Program{
			Name:   "demo",
			About:  "Starts Postgres, ClickHouse, the API and the daemon on this machine, creates users over HTTP and shows them arriving in ClickHouse.",
			Prefix: "DEMO_",
		}
		if _, err := program.Parse(&s); err != nil {
			return err
		}
		return s.run(ctx)
	}))
}

func (s *settings) run(ctx context.Context) (err error) {
	out := newScreen(s.JSON)
	dir, err := os.MkdirTemp("", "sluicebox-demo-")
	if err != nil {
		return fmt.Errorf("make a folder for the demo: %w", err)
	}
	defer func() { err = errors.Join(err, os.RemoveAll(dir)) }()

	d := &demo{screen: out, dir: dir}
	// What was started is stopped in every case, on a context that Ctrl-C has not ended.
	defer func() { err = errors.Join(err, d.stop(context.WithoutCancel(ctx))) }()
	if err := d.start(ctx); err != nil {
		return err
	}
	d.step("the daemon's status page: %s/", d.cdc.url)
	result, err := d.createUsers(ctx, s.Users, s.Rate)
	if err != nil {
		return err
	}
	if err := out.summary(result); err != nil {
		return err
	}
	if s.Exit {
		if !result.Agrees {
			return errors.New("the counts do not agree")
		}
		return nil
	}
	d.invite()
	<-ctx.Done()
	out.step("stopping")
	return nil
}

// demo is what runs.
type demo struct {
	*screen

	dir        string
	postgres   *embedded.Postgres
	clickhouse *embedded.ClickHouse
	api, cdc   *process
}

// start brings everything up, in the order in which a deployment would.
func (d *demo) start(ctx context.Context) error {
	d.step("starting Postgres and ClickHouse, and building the programs")
	if err := d.startStores(ctx); err != nil {
		return err
	}
	d.step("creating roles of least privilege and the tables: cdc roles, cdc migrate")
	as, err := d.makeRoles(ctx)
	if err != nil {
		return err
	}
	if err := d.finish(ctx, d.program("cdc"), as.migrate, "migrate"); err != nil {
		return err
	}
	d.step("starting the API and the daemon: api, cdc run")
	if d.api, err = d.launch(ctx, d.program("api"), "127.0.0.1:8080", "API_ADDR", as.api); err != nil {
		return err
	}
	if d.cdc, err = d.launch(ctx, d.program("cdc"), "127.0.0.1:8081", "CDC_ADMIN_ADDR", as.cdc, "run"); err != nil {
		return err
	}
	if err := d.api.ready(ctx); err != nil {
		return err
	}
	return d.cdc.ready(ctx)
}

func (d *demo) startStores(ctx context.Context) error {
	group, ctx := errgroup.WithContext(ctx)
	group.Go(func() (err error) {
		d.postgres, err = embedded.StartPostgres(ctx, embedded.PostgresOptions{})
		return err
	})
	group.Go(func() (err error) {
		d.clickhouse, err = embedded.StartClickHouse(ctx, embedded.ClickHouseOptions{Users: grants()})
		return err
	})
	group.Go(func() error {
		return d.finish(ctx, "go", nil, "build", "-o", d.dir+string(filepath.Separator), "./cmd/api", "./cmd/cdc")
	})
	return group.Wait()
}

func (d *demo) program(name string) string { return filepath.Join(d.dir, name) }

// stop ends everything in the reverse order.
func (d *demo) stop(ctx context.Context) error {
	var errs []error
	for _, p := range []*process{d.api, d.cdc} {
		if p != nil {
			errs = append(errs, p.stop())
		}
	}
	if d.clickhouse != nil {
		errs = append(errs, d.clickhouse.Stop(ctx))
	}
	if d.postgres != nil {
		errs = append(errs, d.postgres.Stop(ctx))
	}
	return errors.Join(errs...)
}

// invite prints what there is to try.
func (d *demo) invite() {
	d.print("\nIt stays up until Ctrl-C. To try:\n\n")
	d.print("  curl -i -X POST %s/users -H 'Content-Type: application/json' \\\n", d.api.url)
	d.print("    -d '{\"email\": \"ada@example.com\", \"first_name\": \"Ada\", \"last_name\": \"Lovelace\"}'\n\n")
	d.print("  Status page %s/\n", d.cdc.url)
	d.print("  API         %s/openapi.json\n", d.api.url)
	d.print("  Metrics     %s/metrics\n", d.cdc.url)
	d.print("  Health      %s/readyz\n", d.cdc.url)
	d.print("  Postgres    psql '%s'\n", d.postgres.URL("postgres"))
	d.print("  ClickHouse  curl '%s' --data-binary \\\n", d.clickhouse.HTTPURL(""))
	d.print("                'SELECT id, event_type, event_context FROM default.event_log ORDER BY id DESC LIMIT 5'\n\n")
}
