package api

import (
	"net/http"
	"os"
	"path/filepath"
	"testing"

	"github.com/go-chi/chi/v5"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/sluicebox/sluicebox/internal/cli"
)

// discard is an answer that nobody reads.
type discard struct{ header http.Header }

func (d discard) Header() http.Header       { return d.header }
func (discard) Write(p []byte) (int, error) { return len(p), nil }
func (discard) WriteHeader(int)             {}

// BenchmarkObserve is what counting and logging a request costs, the line written to a file.
func BenchmarkObserve(b *testing.B) {
	pool, err := pgxpool.New(b.Context(), "postgres://127.0.0.1:1/db")
	if err != nil {
		b.Fatal(err)
	}
	defer pool.Close()
	for _, level := range []string{"info", "warn"} {
		b.Run(level, func(b *testing.B) {
			file, err := os.Create(filepath.Join(b.TempDir(), "log"))
			if err != nil {
				b.Fatal(err)
			}
			defer func() { _ = file.Close() }()
			router := chi.NewMux()
			router.Use(observe(cli.Log{LogLevel: level, LogFormat: "json"}.Logger(file), newMeters(pool), nil))
			router.Get("/users/{id}", func(http.ResponseWriter, *http.Request) {})
			request, err := http.NewRequestWithContext(b.Context(), http.MethodGet, "http://localhost/users/7", nil)
			if err != nil {
				b.Fatal(err)
			}
			answer := discard{http.Header{}}
			b.ReportAllocs()
			for b.Loop() {
				router.ServeHTTP(answer, request)
			}
		})
	}
}
