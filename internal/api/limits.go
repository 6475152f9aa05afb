package api

import (
	"hash/maphash"
	"math"
	"net"
	"net/http"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"golang.org/x/time/rate"
)

const (
	// requestsPerConnection is how many requests there may be for each connection to Postgres. The last of them gets one within
	// acquireTimeout as long as a request takes Postgres less than 60 ms.
	requestsPerConnection = 32
	// addressBuckets is how many token buckets the addresses of clients share where there are no keys: few kilobytes, however many addresses
	// come. Two addresses meet in one bucket by chance, which a client can't steer.
	addressBuckets = 1024
	// maxWait, in seconds, is the longest that a client is told to wait. It bounds what a rate near zero would come to.
	maxWait = 3600
)

// refused is a request that is not looked at, for now.
type refused struct {
	status int
	reason string
	after  int // seconds after which it may be sent again
}

func (e refused) Error() string { return e.reason }

// errBusy is a request that there is no place for. One second is enough for a hundred requests to be done.
var errBusy = refused{http.StatusServiceUnavailable, "more requests are in hand than this service can take; try again", 1}

// places are as many as requests may be in one state at once.
type places chan struct{}

// take takes a place if one is free, and says whether it did.
func (p places) take() bool {
	select {
	case p <- struct{}{}:
		return true
	default:
		return false
	}
}

func (p places) leave() { <-p }

// rates are the token buckets of all clients.
type rates struct {
	limit     rate.Limit
	burst     int
	addresses []*rate.Limiter
	seed      maphash.Seed

	mu   sync.Mutex
	keys map[digest]*rate.Limiter // of keys that were used; who has none of the service's makes none
}

// newRates returns buckets that hold burst requests, or those of one second if burst is 0.
func newRates(limit float64, burst int) *rates {
	if burst == 0 {
		burst = int(math.Ceil(limit))
	}
	b := &rates{
		limit: rate.Limit(limit), burst: burst, addresses: make([]*rate.Limiter, addressBuckets), seed: maphash.MakeSeed(),
		keys: map[digest]*rate.Limiter{},
	}
	for i := range b.addresses {
		b.addresses[i] = rate.NewLimiter(b.limit, burst)
	}
	return b
}

// of is the bucket of the client that sent a request. A header that names another address is not believed: any client can write one.
func (b *rates) of(r *http.Request) *rate.Limiter {
	if rec := recordOf(r.Context()); rec.key > 0 {
		b.mu.Lock()
		defer b.mu.Unlock()
		bucket := b.keys[rec.digest]
		if bucket == nil {
			bucket = rate.NewLimiter(b.limit, b.burst)
			b.keys[rec.digest] = bucket
		}
		return bucket
	}
	host, _, err := net.SplitHostPort(r.RemoteAddr)
	if err != nil {
		host = r.RemoteAddr
	}
	return b.addresses[maphash.String(b.seed, host)%uint64(len(b.addresses))]
}

// limitRate refuses requests of a client that sends more of them a second than the limit; 0 is no limit.
func limitRate(limit float64, burst int, count prometheus.Counter) func(http.Handler) http.Handler {
	if limit == 0 {
		return func(next http.Handler) http.Handler { return next }
	}
	b := newRates(limit, burst) // here, and so the same for all routes
	return func(next http.Handler) http.Handler {
		return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			bucket, now := b.of(r), time.Now()
			if bucket.AllowN(now, 1) {
				next.ServeHTTP(w, r)
				return
			}
			count.Inc()
			// Not a reservation that is cancelled: of several at once, some tokens would not come back.
			wait := math.Ceil((1 - bucket.TokensAt(now)) / float64(bucket.Limit()))
			after := int(max(1, min(wait, maxWait)))
			fail(w, r, refused{http.StatusTooManyRequests, "this client sends too many requests; wait as long as Retry-After says", after})
		})
	}
}

// limitInHand refuses requests at once while so many are being worked on: they would only wait for a connection to Postgres until their
// clients have given up, and keep later ones waiting.
func limitInHand(most int, count prometheus.Counter) func(http.Handler) http.Handler {
	inHand := make(places, most) // here, and so the same for all routes
	return func(next http.Handler) http.Handler {
		return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			if !inHand.take() {
				count.Inc()
				fail(w, r, errBusy)
				return
			}
			defer inHand.leave()
			next.ServeHTTP(w, r)
		})
	}
}
