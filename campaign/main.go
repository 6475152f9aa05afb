// Command campaign puts the whole system under faults and holds it against what was really committed. See docs/campaign.md.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"math/rand/v2"
	"os"
	"os/signal"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"time"
)

// options are the command line.
type options struct {
	seed     uint64
	duration time.Duration
	faults   int
	rate     int
	large    int
	huge     bool
	race     bool
	recovery time.Duration
	only     string
	root     string
	ledger   string
	logs     string
}

func main() { os.Exit(run()) } //nolint:forbidigo // only main ends the process

func run() int {
	o := options{}
	flag.Uint64Var(&o.seed, "seed", 0, "seed of the plan of faults; 0: a new one")
	flag.DurationVar(&o.duration, "duration", 6*time.Minute, "time over which the faults are spread")
	flag.IntVar(&o.faults, "faults", 150, "how many faults at least")
	flag.IntVar(&o.rate, "rate", 900, "events a second that the writers aim at")
	flag.IntVar(&o.large, "large", 15_000, "rows of a large transaction")
	flag.BoolVar(&o.huge, "huge", false, "also transactions of millions of rows, each of which takes minutes")
	flag.BoolVar(&o.race, "race", false, "build the programs with the race detector (needs a C compiler)")
	flag.DurationVar(&o.recovery, "recovery", 30*time.Second, "how long the lag may take to return to zero once every fault is healed, beside the backlog")
	flag.StringVar(&o.only, "only", "", "inject only faults whose name contains one of these words, separated by commas")
	flag.StringVar(&o.root, "root", "..", "folder of the product's module")
	flag.StringVar(&o.ledger, "ledger", "ledger.jsonl", "file that gets a line for the run, unless the tree has changes that are not committed")
	flag.StringVar(&o.logs, "logs", "", "folder for logs, kept; empty: a temporary one, kept if the run fails")
	list := flag.Bool("list", false, "list the faults and exit")
	flag.Parse()
	if *list {
		for _, f := range allFaults(o) {
			_, _ = fmt.Fprintln(os.Stdout, f.name)
		}
		return 0
	}
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	passed, err := campaign(ctx, o)
	if err != nil {
		fmt.Fprintln(os.Stderr, "campaign:", err)
		return 2
	}
	if !passed {
		return 1
	}
	return 0
}

// campaign is one run. An error means that the run itself could not be made.
func campaign(ctx context.Context, o options) (passed bool, err error) {
	if o.seed == 0 {
		o.seed = rand.Uint64N(1 << 32)
	}
	commit, dirty := revision(ctx, o.root)
	keep := o.logs != ""
	if keep {
		err = os.MkdirAll(o.logs, 0o755)
	} else {
		o.logs, err = os.MkdirTemp("", "sluicebox-campaign-")
	}
	if err != nil {
		return false, fmt.Errorf("make a folder for the logs: %w", err)
	}
	defer func() {
		if passed && !keep {
			_ = os.RemoveAll(o.logs) // a temporary folder
		}
	}()
	m, err := openMeans(ctx, o)
	if err != nil {
		return false, err
	}
	defer m.close(ctx)
	plan, last := makePlan(o.seed, m.possible(o), o.faults, o.duration, strings.Split(o.only, ","))
	if len(plan)+len(last) == 0 {
		return false, errors.New("no fault that is possible here has such a name; -list shows them")
	}
	replay := fmt.Sprintf("git checkout %s && make campaign ARGS='-seed %d%s'", commit, o.seed, given())
	fmt.Fprintf(os.Stderr, "campaign: seed %d, commit %s%s, logs in %s\n", o.seed, commit, mark(dirty), o.logs)

	s, err := openStage(ctx, o, m)
	if err != nil {
		return false, err
	}
	defer s.close(ctx)
	began := time.Now()
	s.run(ctx, plan, last)
	result := s.result(context.WithoutCancel(ctx), began)
	result.Commit, result.Seed = commit, o.seed
	if ctx.Err() != nil {
		return false, errors.New("interrupted")
	}
	for _, v := range s.violations() {
		fmt.Fprintf(os.Stderr, "violation: %s\n", v)
	}
	fmt.Fprintln(os.Stderr, "campaign:", result)
	if result.Violations > 0 {
		fmt.Fprintf(os.Stderr, "campaign failed; logs in %s; replay with: %s\n", o.logs, replay)
	}
	if dirty || o.only != "" {
		fmt.Fprintln(os.Stderr, "campaign: not recorded: the tree has changes that are not committed, or faults were chosen by name")
		return result.Violations == 0, nil
	}
	return result.Violations == 0, result.append(o.ledger)
}

// given are the flags of the command line that make a run what it is, but for the seed.
func given() string {
	var all strings.Builder
	flag.Visit(func(f *flag.Flag) {
		if !slices.Contains([]string{"seed", "root", "ledger", "logs"}, f.Name) {
			fmt.Fprintf(&all, " -%s=%q", f.Name, f.Value)
		}
	})
	return all.String()
}

func mark(dirty bool) string {
	if dirty {
		return "+dirty"
	}
	return ""
}

// revision tells the commit of the product. Lines that earlier runs added to the ledger are no change of it.
func revision(ctx context.Context, root string) (commit string, dirty bool) {
	out, err := command(ctx, root, "git", "rev-parse", "HEAD")
	if err != nil {
		return "unknown", true
	}
	status, err := command(ctx, root, "git", "status", "--porcelain", "--", ".", ":!campaign/ledger.jsonl")
	return strings.TrimSpace(out), err != nil || strings.TrimSpace(status) != ""
}

// build makes the programs under test, with failpoints.
func build(ctx context.Context, root, into string, race bool) error {
	into, err := filepath.Abs(into)
	if err != nil {
		return fmt.Errorf("build: %w", err)
	}
	args := []string{"CGO_ENABLED=0", "go", "build", "-tags", "failpoints", "-o", into + "/"}
	if race {
		args[0] = "CGO_ENABLED=1"
		args = append(args, "-race")
	}
	if _, err := command(ctx, root, "env", append(args, "./cmd/api", "./cmd/cdc")...); err != nil {
		return fmt.Errorf("build: %w", err)
	}
	return nil
}
