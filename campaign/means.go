package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"slices"
)

// means are what some kinds of faults need, and not every machine has.
type means struct {
	postgresDisk, clickHouseDisk *disk
	clock                        *clock
}

// openMeans finds out what there is, and says which kinds are left out.
func openMeans(ctx context.Context, o options) (*means, error) {
	sweepDisks(ctx)
	m := &means{}
	var err error
	if m.postgresDisk, err = openDisk(ctx, "postgres"); err == nil {
		m.clickHouseDisk, err = openDisk(ctx, "clickhouse")
	}
	if err != nil {
		fmt.Fprintf(os.Stderr, "campaign: no full disks, since none can be mounted: %.300s\n", err)
		err = m.postgresDisk.close(ctx)
		m.postgresDisk = nil
	}
	var other error
	if m.clock, other = openClock(o.logs); other == nil && m.clock == nil {
		fmt.Fprintln(os.Stderr, "campaign: no clock jumps, since libfaketime is missing: apt-get install faketime")
	}
	return m, errors.Join(err, other)
}

func (m *means) close(ctx context.Context) {
	m.clock.close()
	ctx = context.WithoutCancel(ctx)
	if err := errors.Join(m.postgresDisk.close(ctx), m.clickHouseDisk.close(ctx)); err != nil {
		fmt.Fprintln(os.Stderr, "campaign:", err)
	}
}

// possible are the kinds of faults that a run has.
func (m *means) possible(o options) []fault {
	return slices.DeleteFunc(allFaults(o), func(f fault) bool {
		return f.needs == needsDisk && m.postgresDisk == nil || f.needs == needsClock && m.clock == nil || f.needs == needsHuge && !o.huge
	})
}

// directory is where a store keeps its data; "": it makes one of its own.
func (d *disk) directory() string {
	if d == nil {
		return ""
	}
	return d.dir
}
