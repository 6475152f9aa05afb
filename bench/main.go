// Command bench measures the daemon beside what bounds it, in one run on the embedded stores. See docs/bench.md.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"os/signal"
	"slices"
	"strings"
	"syscall"
)

// options are the command line.
type options struct {
	only    string
	sizes   string
	links   string
	events  int
	runs    int
	seconds int
	huge    int
	json    string
	root    string
	profile string
}

// figure is one thing that is measured.
type figure struct {
	name    string
	what    string
	measure func(context.Context) error
}

// figures lists them in the order in which they run.
func (s *stage) figures() []figure {
	return []figure{
		{"drain", "waiting events in transactions of 100 and of 1, over TCP and over a Unix socket, beside pg_recvlogical", s.drain},
		{"polling", "the same by polling the table, which is the design that this replaces", s.polling},
		{"growth", "drain and memory at a tenth, once and five times as many events", s.growth},
		{"shares", "a drain by one, two and four streams that carry one outbox together", s.shares},
		{"memory", "peak memory during one large transaction, and with ClickHouse paused under load", s.memory},
		{"steady", "20,000 events a second: lag, and inserts a second", s.steady},
		{"latency", "commit to queryable at 1,000 events a second, with two delays", s.latency},
		{"api", "POST /users beside pgbench", s.api},
	}
}

func main() { os.Exit(run()) } //nolint:forbidigo // only main ends the process

func run() int {
	o := options{}
	flag.StringVar(&o.only, "only", "", "measure only these, separated by commas; -list shows them")
	flag.IntVar(&o.events, "events", 2_000_000, "events of a drain")
	flag.StringVar(&o.sizes, "sizes", "100,1", "events of a transaction, in drains")
	flag.StringVar(&o.links, "links", "TCP,socket", "how drains reach Postgres")
	flag.IntVar(&o.runs, "runs", 3, "runs of each contender of a drain, and of shares; medians are of these")
	flag.IntVar(&o.seconds, "seconds", 60, "length of the measurements that have one: steady and memory whole, latency half, api a sixth a contender")
	flag.IntVar(&o.huge, "huge", 5_000_000, "rows of the large transaction")
	flag.StringVar(&o.json, "json", "", "file that gets the table as JSON")
	flag.StringVar(&o.root, "root", "..", "folder of the product's module")
	flag.StringVar(&o.profile, "profile", "", "folder that gets a processor profile of each drain of the daemon, by perf")
	list := flag.Bool("list", false, "list what is measured and exit")
	flag.Parse()
	if *list {
		for _, f := range (&stage{}).figures() {
			_, _ = fmt.Fprintf(os.Stdout, "%-8s %s\n", f.name, f.what)
		}
		return 0
	}
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	if err := bench(ctx, o, os.Stdout); err != nil {
		fmt.Fprintln(os.Stderr, "bench:", err)
		return 1
	}
	return 0
}

// bench measures and prints the table. What was measured before an error is printed too.
func bench(ctx context.Context, o options, out io.Writer) error {
	s := &stage{o: o, table: &table{}}
	chosen := s.figures()
	if o.only != "" {
		names := strings.Split(o.only, ",")
		chosen = slices.DeleteFunc(chosen, func(f figure) bool { return !slices.Contains(names, f.name) })
		if len(chosen) != len(names) {
			return errors.New("-only: nothing has such a name; -list shows them")
		}
	}
	defer s.close(ctx)
	err := s.open(ctx)
	if err != nil {
		return err
	}
	for _, f := range chosen {
		fmt.Fprintf(os.Stderr, "bench: %s: %s\n", f.name, f.what)
		if err = f.measure(ctx); err != nil {
			err = fmt.Errorf("%s: %w", f.name, err)
			break
		}
	}
	if printErr := s.table.write(out); err == nil {
		err = printErr
	}
	if o.json != "" && err == nil {
		err = s.table.save(o.json)
	}
	return err
}
