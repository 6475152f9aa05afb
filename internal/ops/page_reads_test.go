package ops_test

import (
	"context"
	"math"
	"net/http"
	"regexp"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/sluicebox/sluicebox/internal/batch"
	"github.com/sluicebox/sluicebox/internal/pipeline"
)

func TestPageReadsTheLedger(t *testing.T) {
	t.Parallel()
	t.Run("as often for many viewers as for one", func(t *testing.T) {
		t.Parallel()
		synctest.Test(t, func(t *testing.T) {
			b := healthy()
			page := pageOf(streaming(), b, true)
			for range 100 {
				shown(t, page)
				after(100 * time.Millisecond)
			}
			if b.reads != 5 {
				t.Errorf("it was read %d times in 10 seconds, want 5", b.reads)
			}
		})
	})
	t.Run("with a time-out, and shows what it knew when Postgres hangs", func(t *testing.T) {
		t.Parallel()
		synctest.Test(t, func(t *testing.T) {
			b := healthy()
			page := pageOf(streaming(), b, true)
			shown(t, page)
			b.hangs = true
			after(time.Minute)
			first := make(chan struct{})
			go func() {
				defer close(first)
				request(t, page, http.MethodGet, "/now", "")
			}()
			synctest.Wait() // the first viewer waits for Postgres
			began := time.Now()
			has(t, shown(t, page), `<th scope="row">812</th>`)
			if took := time.Since(began); took != 0 {
				t.Errorf("the second viewer waited %v for the first one", took)
			}
			<-first
			if took := time.Since(began); took != 3*time.Second {
				t.Errorf("the first one waited %v, want 3 s", took)
			}
			has(t, shown(t, page), `<th scope="row">812</th>`, "As of 63 s ago. Postgres does not answer this page: context deadline exceeded", "it was last read 63 s ago")
			if took := time.Since(began); took != 3*time.Second || b.reads != 2 {
				t.Errorf("it was asked again at once: %d reads", b.reads)
			}
		})
	})
}

func TestPageCharts(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		m := streaming()
		ctx, stop := context.WithCancel(t.Context())
		done := make(chan struct{})
		go func() {
			defer close(done)
			m.Record(ctx)
		}()
		defer func() {
			stop()
			<-done
		}()
		at := func() int64 { return time.Now().UnixMicro() }
		for i := range 2 * 3600 { // of which only the last hour is kept
			look(m, 1000)
			switch i {
			case 5000:
				m.State(pipeline.Standby, "another one leads") // nothing is known of the lag
			case 5300:
				m.State(pipeline.Streaming, "")
			}
			if i >= 6000 && i < 6100 { // a bad time that is over
				m.Settled(&batch.Batch{IDs: make([]int64, 1), Stored: time.Now(), Commits: []batch.Commit{{At: at() - 30_000_000, Rows: 1000}}}, time.Second, time.Second)
			}
			if i >= 7000 {
				m.Settled(&batch.Batch{IDs: make([]int64, 100), Stored: time.Now(), Commits: []batch.Commit{
					{At: at() - 50_000, Rows: 98}, {At: at() - 2_000_000, Rows: 2},
				}}, time.Second, time.Second)
			}
			after(time.Second)
		}
		text := shown(t, pageOf(m, healthy(), true))
		numbers := regexp.MustCompile(`<p class="now">([^<]*)(?:<small>p50</small> <small class="p99">(.*?) p99</small>)?</p>`).FindAllStringSubmatch(text, -1)
		if len(numbers) != 3 || numbers[0][1] != "0 s" || !regexp.MustCompile(`^(80|90|100|110|120)/s$`).MatchString(numbers[1][1]) {
			t.Fatalf("shown: %q, want a lag of 0 s and about 100/s", numbers)
		}
		for i, want := range []float64{0.05, 2} {
			got, err := time.ParseDuration(strings.ReplaceAll(numbers[2][i+1], " ", ""))
			if err != nil || math.Abs(got.Seconds()/want-1) > 0.1 {
				t.Errorf("%v, want %v s give or take a tenth: %v", got, want, err)
			}
		}
		paths := regexp.MustCompile(`<path class="stroke (\w+)".*? data-values="(.*?)" d="(.*?)"`).FindAllStringSubmatch(text, -1)
		for _, path := range paths {
			if lines := strings.Count(path[3], "M"); path[1] == "lag" && lines != 2 || path[1] == "rate" && lines != 1 {
				t.Errorf("%s is drawn as %d lines, want a gap while it was not known: %s", path[1], lines, path[3])
			}
			values := strings.Split(path[2], "|")
			if len(values) != 240 {
				t.Errorf("%s has %d columns, want 240", path[1], len(values))
			}
			if known := slices.IndexFunc(values, func(v string) bool { return v != "" }); path[1] == "p99" && (known < 155 || known > 165) {
				t.Errorf("there are latencies from column %d on, want one for 20 minutes ago: 160", known)
			}
		}
		has(t, text, "60 min ago", "Lag over the last 60 minutes: now 0 s")
		if len(paths) != 4 {
			t.Errorf("%d lines, want 4", len(paths))
		}
		if len(text) > 60_000 {
			t.Errorf("the page has %d bytes", len(text))
		}
	})
}
