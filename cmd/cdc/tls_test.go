package main

import (
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"syscall"
	"testing"

	"github.com/jackc/pgx/v5"

	"github.com/sluicebox/sluicebox/internal/embedded"
	"github.com/sluicebox/sluicebox/internal/trust"
)

// Parts of what an operator is told.
const (
	toldAuthority = "of an authority that is not trusted here"
	toldName      = "for other names than the one in the URL"
	toldExpired   = "has expired, or is not valid yet"
	toldClient    = "does not accept this program's certificate"
)

// named connects to the same server by a name that its certificate does not have.
func named(u *url.URL) { u.Host = net.JoinHostPort("localhost", u.Port()) }

// secured is a Postgres that serves TLS.
type secured struct {
	*line

	server *embedded.Postgres
}

// present has Postgres show a certificate, and ask clients for one of an authority if pg_hba.conf says so.
func (s *secured) present(t *testing.T, server pair, clients *authority) {
	t.Helper()
	data := filepath.Join(s.server.Dir, "data")
	for setting, path := range map[string]string{"ssl_cert_file": server.cert, "ssl_key_file": server.key, "ssl_ca_file": clients.path} {
		s.exec(t, `ALTER SYSTEM SET `+setting+` = '`+place(t, data, path)+`'`)
	}
	s.exec(t, `ALTER SYSTEM SET ssl = on`)
	s.exec(t, `SELECT pg_reload_conf()`)
}

// place puts a file into a folder, for who owns that, and returns its name there.
func place(t *testing.T, folder, path string) string {
	t.Helper()
	content, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	name := filepath.Base(path)
	if err := os.WriteFile(filepath.Join(folder, name), content, 0o600); err != nil {
		t.Fatal(err)
	}
	info, err := os.Stat(folder)
	if err != nil {
		t.Fatal(err)
	}
	if owner, is := info.Sys().(*syscall.Stat_t); is {
		if err := os.Chown(filepath.Join(folder, name), int(owner.Uid), int(owner.Gid)); err != nil {
			t.Fatal(err)
		}
	}
	return name
}

// connecting waits until a connection to Postgres ends as wanted: with that hint, or well if it is empty.
func connecting(t *testing.T, address, want string) {
	t.Helper()
	eventually(t, func() string {
		conn, err := pgx.Connect(t.Context(), address)
		if err == nil {
			_ = conn.Close(t.Context())
		}
		if hint := trust.Hint(err); err != nil && want == "" || !strings.Contains(hint, want) {
			return fmt.Sprintf("%v (%s)", err, hint)
		}
		return ""
	})
}

func TestTLSToPostgres(t *testing.T) {
	t.Parallel()
	l, server := newOwnLine(t, nil)
	s := &secured{l, server}
	own, other := newAuthority(t), newAuthority(t)
	full := map[string]string{"sslmode": "verify-full", "sslrootcert": own.path}
	address := with(t, l.db.PostgresURL, nil, full)
	connecting(t, address, "Postgres has no TLS")
	s.present(t, own.issue(t, "server", nil), own)
	connecting(t, address, "")

	t.Run("daemon and API work with it, the replication connection too", func(t *testing.T) {
		d, api := l.start(t, "DATABASE_URL="+address), l.startAPI(t, "DATABASE_URL="+address)
		api.post(t, "ada@example.com", "")
		l.write(t, 100, 10)
		l.allMarked(t)
		for _, kind := range []string{"walsender", "client backend"} {
			const sessions = `SELECT count(*) FROM pg_stat_activity JOIN pg_stat_ssl USING (pid) WHERE application_name LIKE 'sluicebox%' AND backend_type = $1 AND ssl = $2`
			eventually(t, func() string { // the events may have come by the backfill, before there is a stream
				if l.count(t, sessions, kind, true) == 0 {
					return "no " + kind + " is encrypted"
				}
				return ""
			})
			if n := l.count(t, sessions, kind, false); n > 0 {
				t.Errorf("%d sessions (%s) are not encrypted", n, kind)
			}
		}
		if code := d.stop(t); code != 0 {
			t.Errorf("exit code %d, want 0", code)
		}
		code, out := l.against(t, "doctor", "DATABASE_URL="+address)
		if !regexp.MustCompile(`postgres.encryption +TLS, with a certificate that is verified`).MatchString(out) {
			t.Errorf("cdc doctor: exit code %d\n%s", code, out)
		}
	})

	// refused: daemon and API say why, and do not connect.
	refused := func(t *testing.T, address, told string) {
		t.Helper()
		for name, settings := range map[string][]string{
			"SQL": {"DATABASE_URL=" + address}, "replication": {"DATABASE_URL=" + l.db.PostgresURL, "REPLICATION_DATABASE_URL=" + address},
		} {
			d := l.start(t, settings...)
			d.wait(t, told)
			eventually(t, func() string { // while it tries again it says that it starts
				code, page := d.get(t, "/readyz")
				if code == http.StatusOK {
					t.Errorf("%s: /readyz says %d, %s", name, code, page)
				}
				if !strings.Contains(page, told) {
					return name + ": /readyz says " + page
				}
				return ""
			})
			d.stop(t)
		}
		path, err := apiBinary()
		if err != nil {
			t.Fatal(err)
		}
		api := start(t, path, []string{"DATABASE_URL=" + address, "API_ADDR=127.0.0.1:0"})
		if code := api.end(t); code != 3 || !strings.Contains(api.text(), told) {
			t.Errorf("the API: exit code %d, want 3:\n%s", code, api.text())
		}
	}
	t.Run("an authority that did not sign it is refused", func(t *testing.T) {
		refused(t, with(t, address, nil, map[string]string{"sslrootcert": other.path}), toldAuthority)
	})
	t.Run("a name that it does not have is refused", func(t *testing.T) { refused(t, with(t, address, named, nil), toldName) })
	t.Run("an expired one is refused", func(t *testing.T) {
		s.present(t, own.issue(t, "expired", expired), own)
		connecting(t, address, toldExpired)
		refused(t, address, toldExpired)
		s.present(t, own.issue(t, "renewed", nil), own)
		connecting(t, address, "")
	})
	t.Run("a client's certificate takes the place of a password", func(t *testing.T) {
		l.exec(t, `CREATE ROLE certified LOGIN SUPERUSER`)
		hba := filepath.Join(server.Dir, "data", "pg_hba.conf")
		rules, err := os.ReadFile(hba)
		if err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(hba, append([]byte("hostssl all certified 127.0.0.1/32 cert\n"), rules...), 0o600); err != nil {
			t.Fatal(err)
		}
		l.exec(t, `SELECT pg_reload_conf()`)
		as := func(client pair) string {
			return with(t, address, func(u *url.URL) { u.User = url.User("certified") }, map[string]string{"sslcert": client.cert, "sslkey": client.key})
		}
		good := as(own.issue(t, "certified", nil))
		connecting(t, good, "")
		d := l.start(t, "DATABASE_URL="+good)
		l.write(t, 100, 10)
		l.allMarked(t)
		d.stop(t)

		d = l.start(t, "DATABASE_URL="+with(t, address, func(u *url.URL) { u.User = url.User("certified") }, nil))
		if code := d.end(t); code != 3 || !strings.Contains(d.text(), "name it in sslcert and sslkey") {
			t.Errorf("without one: exit code %d, want 3", code)
		}
		d = l.start(t, "DATABASE_URL="+as(other.issue(t, "certified", nil)))
		d.wait(t, toldClient)
		d.stop(t)

		// A renewed one is taken from its files without a restart: Postgres does not take the one of before any more.
		client, renewing := own.issue(t, "certified", nil), newAuthority(t)
		d = l.start(t, "DATABASE_URL="+as(client))
		d.wait(t, `"message":"streaming"`)
		renewed := renewing.issue(t, "certified", nil)
		for from, to := range map[string]string{renewed.cert: client.cert, renewed.key: client.key} {
			if err := os.Rename(from, to); err != nil {
				t.Fatal(err)
			}
		}
		s.present(t, own.issue(t, "server again", nil), renewing)
		l.exec(t, `SELECT pg_terminate_backend(pid, 5000) FROM pg_stat_activity WHERE usename = 'certified'`)
		l.write(t, 100, 10)
		l.allMarked(t)
		if code := d.stop(t); code != 0 {
			t.Errorf("exit code %d, want 0", code)
		}
	})
}

// against runs a command of an operator with a setting of its own.
func (l *line) against(t *testing.T, command string, settings ...string) (code int, out string) {
	t.Helper()
	cmd := l.operator(t, command)
	cmd.Env = append(append(cmd.Env, "CLICKHOUSE_URL="+l.db.ClickHouseURL), settings...)
	text, err := cmd.CombinedOutput()
	if err != nil && !errors.As(err, new(*exec.ExitError)) {
		t.Fatal(err)
	}
	return cmd.ProcessState.ExitCode(), string(text)
}

func TestTLSToClickHouse(t *testing.T) {
	t.Parallel()
	for _, protocol := range []string{"native", "HTTP"} {
		t.Run("by "+protocol, func(t *testing.T) {
			t.Parallel()
			l := newLine(t)
			own, other := newAuthority(t), newAuthority(t)
			plain := l.db.ClickHouseURL
			if protocol == "HTTP" {
				plain = l.db.ClickHouseHTTPURL
			}
			target, err := url.Parse(plain)
			if err != nil {
				t.Fatal(err)
			}
			// behind is ClickHouse behind a server that has a certificate and trusts clients of an authority.
			behind := func(server pair, clients *authority, parameters map[string]string) string {
				address := terminate(t, target.Host, server, clients)
				return with(t, plain, func(u *url.URL) {
					u.Host, u.Scheme = address, strings.Replace(u.Scheme, "http", "https", 1)
				}, parameters)
			}
			root := map[string]string{"secure": "true", "sslrootcert": own.path}
			delivers := func(t *testing.T, address string) {
				t.Helper()
				d := l.start(t, "CLICKHOUSE_URL="+address)
				l.write(t, 100, 10)
				l.allMarked(t)
				if code := d.stop(t); code != 0 {
					t.Errorf("exit code %d, want 0", code)
				}
			}
			refused := func(t *testing.T, address, told string) {
				t.Helper()
				d := l.start(t, "CLICKHOUSE_URL="+address)
				d.wait(t, told)
				if code, page := d.get(t, "/readyz"); code == http.StatusOK || !strings.Contains(page, told) {
					t.Errorf("/readyz says %d, %s", code, page)
				}
				d.stop(t)
				if code, out := l.against(t, "doctor", "CLICKHOUSE_URL="+address); code != 3 || !strings.Contains(out, told) {
					t.Errorf("cdc doctor: exit code %d, want 3\n%s", code, out)
				}
			}
			good := behind(own.issue(t, "server", nil), nil, root)
			t.Run("the daemon works with it, and migrate and audit do", func(t *testing.T) {
				delivers(t, good)
				for command, role := range map[string]string{"migrate": l.db.Owner, "audit": l.db.Daemon} {
					if code, out := l.against(t, command, "CLICKHOUSE_URL="+good, "DATABASE_URL="+role); code != 0 {
						t.Errorf("cdc %s: exit code %d\n%s", command, code, out)
					}
				}
			})
			t.Run("an authority that did not sign it is refused, and those of the system did not", func(t *testing.T) {
				refused(t, with(t, good, nil, map[string]string{"sslrootcert": other.path}), toldAuthority)
				refused(t, behind(own.issue(t, "server", nil), nil, map[string]string{"secure": "true"}), toldAuthority)
			})
			t.Run("a name that it does not have is refused", func(t *testing.T) { refused(t, with(t, good, named, nil), toldName) })
			t.Run("a port without TLS is told of", func(t *testing.T) {
				refused(t, with(t, plain, func(u *url.URL) { u.Scheme = strings.Replace(u.Scheme, "http", "https", 1) }, root), "does not speak TLS at this port")
			})
			t.Run("an expired one is refused", func(t *testing.T) {
				refused(t, behind(own.issue(t, "server", expired), nil, root), toldExpired)
			})
			t.Run("a server that asks for a client's certificate gets it", func(t *testing.T) {
				address := behind(own.issue(t, "server", nil), own, root)
				as := func(client pair) string {
					return with(t, address, nil, map[string]string{"sslcert": client.cert, "sslkey": client.key})
				}
				delivers(t, as(own.issue(t, "client", nil)))
				refused(t, address, toldClient)
				refused(t, as(other.issue(t, "client", nil)), toldClient)
			})
		})
	}
}
