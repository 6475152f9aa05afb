package sink

import (
	"testing"

	"github.com/ClickHouse/clickhouse-go/v2"

	"github.com/sluicebox/sluicebox/internal/churl"
)

func TestCompress(t *testing.T) {
	t.Parallel()
	for url, want := range map[string]clickhouse.CompressionMethod{
		"clickhouse://localhost/db":                     clickhouse.CompressionNone,
		"clickhouse://[::1]:9000,127.0.0.1:9001/db":     clickhouse.CompressionNone,
		"clickhouse://clickhouse:9000/db":               clickhouse.CompressionLZ4,
		"clickhouse://127.0.0.1:9000,10.0.0.1:9000/db":  clickhouse.CompressionLZ4,
		"clickhouse://10.0.0.1:9000/db?compress=zstd":   clickhouse.CompressionZSTD,
		"clickhouse://127.0.0.1:9000/db?compress=lz4":   clickhouse.CompressionLZ4,
		"clickhouse://10.0.0.1:9000/db?compress=none":   clickhouse.CompressionNone,
		"https://clickhouse.example.com:8443/db":        clickhouse.CompressionLZ4,
		"http://127.0.0.1:8123/db":                      clickhouse.CompressionNone,
		"http://127.0.0.1:8123,127.0.0.1:8124/db?x=lz4": clickhouse.CompressionNone,
	} {
		options, err := churl.Parse(url)
		if err != nil {
			t.Fatal(err)
		}
		compress(options)
		got := clickhouse.CompressionNone
		if options.Compression != nil {
			got = options.Compression.Method
		}
		if got != want {
			t.Errorf("%s: %s, want %s", url, got, want)
		}
	}
}
