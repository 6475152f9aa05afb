package ops_test

import (
	"context"
	"crypto/sha256"
	"encoding/base64"
	"net/http"
	"net/http/httptest"
	"regexp"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/rs/zerolog"

	"github.com/sluicebox/sluicebox/internal/batch"
	"github.com/sluicebox/sluicebox/internal/cli"
	"github.com/sluicebox/sluicebox/internal/ledger"
	"github.com/sluicebox/sluicebox/internal/ops"
	"github.com/sluicebox/sluicebox/internal/pipeline"
)

// books is a ledger that tells what a test wants, and can hang.
type books struct {
	status     ledger.Status
	batches    []ledger.PastBatch
	quarantine []ledger.Quarantined
	err        error // of every call
	hangs      bool

	reads   int
	retried []int64
}

func (b *books) Brief(ctx context.Context) (*ledger.Status, error) {
	b.reads++
	if b.hangs {
		<-ctx.Done()
		return nil, ctx.Err()
	}
	status := b.status
	status.ReadAt = time.Now()
	beat := time.Now().Add(-time.Second)
	status.Leader.HeartbeatAt = &beat
	return &status, b.err
}

func (b *books) History(context.Context, int) ([]ledger.PastBatch, error) { return b.batches, b.err }

func (b *books) Quarantine(context.Context, bool, int) ([]ledger.Quarantined, int64, error) {
	return b.quarantine, int64(len(b.quarantine)), b.err
}

func (b *books) Retry(_ context.Context, ids []int64) error {
	if b.err == nil {
		b.retried = append(b.retried, ids...)
	}
	return b.err
}

// healthy is the ledger of a stream that flows.
func healthy() *books {
	lag := int64(0)
	settled := time.Now().Add(-time.Second)
	return &books{
		status: ledger.Status{
			Slot: "orders", Known: true, Phase: ledger.PhaseStream, LagBytes: &lag, ServerLSN: "0/5000",
			Leader:          ledger.Leader{Leads: true, Holder: "host-a:12:XYZ"},
			ReplicationSlot: &ledger.ReplicationSlot{Active: true, WALStatus: "reserved", ConfirmedFlushLSN: "0/4711", RetainedBytes: 24_000_000},
			LastBatch:       &ledger.SettledBatch{Seq: 812, Rows: 5000, SettledAt: settled},
		},
		batches: []ledger.PastBatch{{
			Seq: 812, Rows: 5000, Bytes: 1_200_000, SealedBy: "rows", PlannedAt: settled.Add(-400 * time.Millisecond), SettledAt: &settled,
		}},
	}
}

func pageOf(m *ops.Metrics, b *books, loopback bool) http.Handler {
	return ops.NewPage(m, b, ops.PageConfig{Slot: "orders", Loopback: loopback, Build: cli.Build{Version: "v1.2.3"}}, zerolog.Nop()).Handler()
}

// request asks for something at localhost, as a browser does that is at name=value headers.
func request(t *testing.T, page http.Handler, method, path, body string, headers ...string) *httptest.ResponseRecorder {
	t.Helper()
	r := httptest.NewRequestWithContext(t.Context(), method, path, strings.NewReader(body))
	r.Host = "localhost:8081"
	if body != "" {
		r.Header.Set("Content-Type", "application/x-www-form-urlencoded")
	}
	for _, header := range headers {
		name, value, _ := strings.Cut(header, "=")
		if name == "Host" {
			r.Host = value
		} else {
			r.Header.Set(name, value)
		}
	}
	answer := httptest.NewRecorder()
	page.ServeHTTP(answer, r)
	return answer
}

// shown is the page.
func shown(t *testing.T, page http.Handler) string {
	t.Helper()
	answer := request(t, page, http.MethodGet, "/", "")
	if answer.Code != http.StatusOK {
		t.Fatalf("the page: %d %s", answer.Code, answer.Body)
	}
	return answer.Body.String()
}

// has fails unless text has all of some texts.
func has(t *testing.T, text string, wanted ...string) {
	t.Helper()
	for _, want := range wanted {
		if !strings.Contains(text, want) {
			t.Errorf("it does not say %q", want)
		}
	}
	if t.Failed() {
		t.Fatal(regexp.MustCompile(`(?s)<style>.*?</style>|<script>.*?</script>`).ReplaceAllString(text, ""))
	}
}

func TestPage(t *testing.T) {
	t.Parallel()
	t.Run("tells all that is known of a stream that flows", func(t *testing.T) {
		t.Parallel()
		synctest.Test(t, func(t *testing.T) {
			m, b := streaming(), healthy()
			survey(t, m, found{parts: 17, window: 100})
			m.Received(5300, 0)
			m.InHand(120, 300, 40)
			m.Settled(&batch.Batch{Seq: 812, IDs: make([]int64, 5000)}, 400*time.Millisecond, 100*time.Millisecond)
			began := time.Now().Add(-time.Hour)
			ended, rows, gap := began.Add(3*time.Minute), int64(12_345), int64(1_200_000)
			b.status.Incidents = []ledger.Incident{{Kind: "publication", Reason: "it was altered", BeganAt: began, EndedAt: &ended, Rows: &rows, GapBytes: &gap}}
			has(t, shown(t, pageOf(m, b, true)),
				`<title>Fine · orders · Sluicebox</title>`, `leads, epoch 7`, `v1.2.3`,
				`<p class="sentence">Streaming; 0 B behind; last batch`, `Everything that was committed is in ClickHouse.`,
				`filling a batch: 120 rows`, `in flight: 300 rows`, `being marked: 40 rows`, `delivered 5,000`, `answers, 17 parts`, `5 min ago`,
				`<th scope="row">812</th>`, `>5,000</td>`, `>1.2 MB</td>`, `>rows</td>`, `>300 ms</td>`, `>100 ms</td>`, `>400 ms</td>`,
				`host-a:12:XYZ leads`, `24 MB of WAL`, `0/4711`, `reserved`, `Nothing is in quarantine.`,
				`publication`, `3 min`, `12,345`, `it was altered`)
		})
	})
	t.Run("shows what others wrote as text", func(t *testing.T) {
		t.Parallel()
		synctest.Test(t, func(t *testing.T) {
			const hostile = `"><script>alert(1)</script><img src=x onerror=alert(2)>`
			m, b := streaming(), healthy()
			m.State(pipeline.Paused, hostile)
			b.status.Leader.Holder = hostile
			b.status.Incidents = []ledger.Incident{{Kind: hostile, Reason: hostile}}
			b.quarantine = []ledger.Quarantined{{ID: 7, EventType: hostile, Reason: hostile}}
			b.batches[0].SealedBy = hostile
			text := shown(t, pageOf(m, b, true))
			if strings.Contains(text, "<script>alert") || strings.Contains(text, "<img") {
				t.Error("it is markup")
			}
			if n := strings.Count(text, "&lt;script&gt;alert(1)"); n < 5 {
				t.Errorf("it is shown %d times, want 5 or more", n)
			}
		})
	})
	t.Run("does not repeat what ClickHouse says of an event", func(t *testing.T) {
		t.Parallel()
		synctest.Test(t, func(t *testing.T) {
			m, b := streaming(), healthy()
			b.status.Held = 2
			b.quarantine = []ledger.Quarantined{
				{ID: 7, EventType: "order placed", Reason: "ClickHouse refuses it: write: code: 469, message: Constraint `positive` is violated by zoe@example.com"},
				{ID: 8, EventType: "order placed", Reason: "DateTime64(6) has no such value"},
			}
			text := shown(t, pageOf(m, b, true))
			has(t, text, "ClickHouse refuses it, code 469, constraint positive", "DateTime64(6) has no such value", "2 rows held", ", but for what is in quarantine.")
			if strings.Contains(text, "zoe") {
				t.Error("a value of an event is shown")
			}
		})
	})
	t.Run("lets the browser run and load nothing but its own", func(t *testing.T) {
		t.Parallel()
		synctest.Test(t, func(t *testing.T) {
			answer := request(t, pageOf(streaming(), healthy(), true), http.MethodGet, "/", "")
			policy, text := answer.Header().Get("Content-Security-Policy"), answer.Body.String()
			has(t, policy, "default-src 'none';", "frame-ancestors 'none'", "base-uri 'none'", "form-action 'self'")
			for _, tag := range []string{"style", "script"} {
				inline := regexp.MustCompile(`(?s)<`+tag+`>(.*?)</`+tag+`>`).FindAllStringSubmatch(text, -1)
				if len(inline) != 1 {
					t.Fatalf("%d elements %s, want 1", len(inline), tag)
				}
				sum := sha256.Sum256([]byte(inline[0][1]))
				has(t, policy, tag+"-src 'sha256-"+base64.StdEncoding.EncodeToString(sum[:])+"'")
				text = strings.Replace(text, inline[0][0], "", 1)
			}
			if found := regexp.MustCompile(`(?i) (style|on\w+)=|https?://| src=`).FindString(text); found != "" {
				t.Errorf("there is %q in it", found)
			}
			for name, want := range map[string]string{
				"X-Content-Type-Options": "nosniff", "Referrer-Policy": "same-origin", "Cache-Control": "no-store", "X-Frame-Options": "DENY",
			} {
				if got := answer.Header().Get(name); got != want {
					t.Errorf("%s is %q, want %q", name, got, want)
				}
			}
		})
	})
	t.Run("serves the part that changes alone, and all else of the admin address", func(t *testing.T) {
		t.Parallel()
		synctest.Test(t, func(t *testing.T) {
			page := pageOf(streaming(), healthy(), true)
			if text := request(t, page, http.MethodGet, "/now", "").Body.String(); !strings.HasPrefix(text, "<main ") || !strings.HasSuffix(text, "</main>") {
				t.Errorf("it is not the main element:\n%s", text)
			}
			has(t, request(t, page, http.MethodGet, "/metrics", "").Body.String(), "sluicebox_lag_seconds 0")
			has(t, request(t, page, http.MethodGet, "/readyz", "").Body.String(), "streaming")
		})
	})
}
