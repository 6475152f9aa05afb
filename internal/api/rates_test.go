package api

import (
	"fmt"
	"net/http"
	"net/http/httptest"
	"testing"
	"testing/synctest"
	"time"

	"github.com/prometheus/client_golang/prometheus"
)

func TestTokensComeBack(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		refusals := prometheus.NewCounter(prometheus.CounterOpts{})
		served := 0
		// One request in 4 s, at most two at once.
		limited := limitRate(0.25, 2, refusals)(http.HandlerFunc(func(http.ResponseWriter, *http.Request) { served++ }))
		send := func(address string) string {
			t.Helper()
			r := httptest.NewRequestWithContext(t.Context(), http.MethodGet, "/users", nil)
			r.RemoteAddr = address
			w := httptest.NewRecorder()
			limited.ServeHTTP(w, r)
			return fmt.Sprintf("%d %s", w.Code, w.Header().Get("Retry-After"))
		}
		want := func(got, want string) {
			t.Helper()
			if got != want {
				t.Errorf("answer %q after %s, want %q", got, time.Now(), want)
			}
		}
		want(send("192.0.2.1:1000"), "200 ")
		want(send("192.0.2.1:1001"), "200 ")
		for range 10 { // what is refused costs nothing
			want(send("192.0.2.1:1002"), "429 4")
		}
		<-time.After(1500 * time.Millisecond)
		want(send("192.0.2.1:1002"), "429 3") // 2.5, rounded up
		<-time.After(2500 * time.Millisecond)
		want(send("192.0.2.1:1002"), "200 ")
		want(send("192.0.2.1:1002"), "429 4")
		<-time.After(time.Hour)
		want(send("192.0.2.1:1002"), "200 ")
		want(send("192.0.2.1:1002"), "200 ")
		want(send("192.0.2.1:1002"), "429 4")

		served = 0
		for i := range 10 * addressBuckets {
			send(fmt.Sprintf("198.51.%d.%d:1", i/256%256, i%256))
		}
		// Each bucket has two tokens, and few buckets get no address by chance.
		if served < 19*addressBuckets/10 || served > 2*addressBuckets {
			t.Errorf("%d requests of many addresses were served by %d buckets", served, addressBuckets)
		}
	})
}

func TestDefaultsOfTheRate(t *testing.T) {
	t.Parallel()
	for _, test := range []struct {
		limit       float64
		burst, want int
	}{
		{0.1, 0, 1}, {2.5, 0, 3}, {100, 7, 7},
	} {
		b := newRates(test.limit, test.burst)
		if got := b.addresses[0].Burst(); got != test.want {
			t.Errorf("%+v: a burst of %d", test, got)
		}
	}
}
