package main

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"time"
)

// linkFaults are what can happen to each connection.
func linkFaults() []fault {
	var faults []fault
	for _, name := range []string{linkSQL, linkReplication, linkClickHouse, linkWriters} {
		group := "link " + name
		faults = append(faults,
			fault{name: "latency, " + name, group: group, hold: medium(), inject: toxic(name,
				func(random *rand.Rand) []string {
					return []string{fmt.Sprintf(`{"type": "latency", "attributes": {"latency": %d, "jitter": 50}}`, 50+random.IntN(400))}
				})},
			fault{name: "bandwidth limited, " + name, group: group, hold: medium(), inject: toxic(name,
				func(random *rand.Rand) []string {
					rate := 20 + random.IntN(200)
					return []string{
						fmt.Sprintf(`{"type": "bandwidth", "attributes": {"rate": %d}}`, rate),
						fmt.Sprintf(`{"type": "bandwidth", "stream": "upstream", "attributes": {"rate": %d}}`, rate),
					}
				})},
			fault{name: "connections reset, " + name, group: group, hold: brief(), inject: toxic(name,
				func(*rand.Rand) []string { return []string{`{"type": "reset_peer", "attributes": {"timeout": 0}}`} })},
			fault{name: "half open, " + name, group: group, hold: medium(), inject: toxic(name,
				func(random *rand.Rand) []string {
					direction := []string{"upstream", "downstream"}[random.IntN(2)]
					return []string{fmt.Sprintf(`{"type": "timeout", "stream": "%s", "attributes": {"timeout": 0}}`, direction)}
				})},
			fault{
				name: "refused, " + name, group: group, hold: medium(),
				inject: func(_ context.Context, s *stage, _ *rand.Rand) (func(context.Context) error, error) {
					s.links[name].down()
					return s.links[name].up, nil
				},
			},
			fault{name: "flapping, " + name, group: group, hold: brief(), inject: flap(name)})
	}
	return append(faults,
		fault{name: "reply lost after the write, clickhouse", group: "link " + linkClickHouse, weight: 3, hold: medium(), inject: toxic(linkClickHouse,
			func(*rand.Rand) []string {
				return []string{`{"type": "count_sent", "stream": "upstream"}`, `{"type": "lose_reply"}`}
			})},
		fault{name: "cut within a block, clickhouse", group: "link " + linkClickHouse, weight: 2, hold: medium(), inject: toxic(linkClickHouse,
			func(random *rand.Rand) []string {
				return []string{fmt.Sprintf(`{"type": "limit_data", "stream": "upstream", "attributes": {"bytes": %d}}`, 4000+random.IntN(40_000))}
			})},
	)
}

// toxic adds toxics to a link.
func toxic(name string, choose func(*rand.Rand) []string) injection {
	return func(_ context.Context, s *stage, random *rand.Rand) (func(context.Context) error, error) {
		var heals []func(context.Context) error
		heal := func(ctx context.Context) error {
			var all error
			for _, heal := range heals {
				all = errors.Join(all, heal(ctx))
			}
			return all
		}
		for _, text := range choose(random) {
			remove, err := s.links[name].add(text)
			if err != nil {
				return heal, err
			}
			heals = append(heals, remove)
		}
		return heal, nil
	}
}

// flap takes a link down and up again, some times.
func flap(name string) injection {
	return func(ctx context.Context, s *stage, random *rand.Rand) (func(context.Context) error, error) {
		for range 3 + random.IntN(4) {
			s.links[name].down()
			sleep(ctx, time.Duration(random.IntN(200))*time.Millisecond)
			if err := s.links[name].up(ctx); err != nil {
				return s.links[name].up, err
			}
			sleep(ctx, time.Duration(random.IntN(400))*time.Millisecond)
		}
		return nil, nil
	}
}
