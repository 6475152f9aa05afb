//go:build linux

package embedded

import (
	"context"
	"errors"
	"io"
	"net"
	"net/http"
	"net/url"
	"os"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/ClickHouse/clickhouse-go/v2"
	"github.com/ClickHouse/clickhouse-go/v2/lib/driver"
)

func startClickHouse(t *testing.T, options ClickHouseOptions) *ClickHouse {
	t.Helper()
	ch, err := StartClickHouse(t.Context(), options)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.WithoutCancel(t.Context()), patience)
		defer cancel()
		if err := ch.Stop(ctx); err != nil {
			t.Error(err)
		}
	})
	return ch
}

func dial(t *testing.T, address string) driver.Conn {
	t.Helper()
	options, err := clickhouse.ParseDSN(address)
	if err != nil {
		t.Fatal(err)
	}
	conn, err := clickhouse.Open(options)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = conn.Close() })
	return conn
}

func TestClickHouseForAContainer(t *testing.T) {
	ch := startClickHouse(t, ClickHouseOptions{User: "app", Password: "p&ss", Anywhere: true})
	u, err := url.Parse(ch.URL("default"))
	if err != nil {
		t.Fatal(err)
	}
	if got := u.User.String(); got != url.UserPassword("app", "p&ss").String() {
		t.Errorf("the user of its URL is %s", got)
	}
	elsewhere := func(ch *ClickHouse) string { return strings.Replace(ch.URL("default"), loopback, "127.0.0.2", 1) }
	if err := ch.ping(t.Context(), elsewhere(ch)); err != nil {
		t.Errorf("by another address: %v", err)
	}
	if other := startClickHouse(t, ClickHouseOptions{}); other.ping(t.Context(), elsewhere(other)) == nil {
		t.Error("a server listens on other addresses although nobody asked for that")
	}
}

func do(t *testing.T, conn driver.Conn, sql string) {
	t.Helper()
	if err := conn.Exec(t.Context(), sql); err != nil {
		t.Fatalf("%s: %v", sql, err)
	}
}

func number(t *testing.T, conn driver.Conn, sql string) (n uint64) {
	t.Helper()
	if err := conn.QueryRow(t.Context(), sql).Scan(&n); err != nil {
		t.Fatalf("%s: %v", sql, err)
	}
	return n
}

func TestClickHouseUsers(t *testing.T) {
	ch := startClickHouse(t, ClickHouseOptions{Users: map[string][]string{"reader": {"GRANT SELECT ON *.*"}}})
	do(t, dial(t, ch.URL("default")), "CREATE TABLE kept (n UInt64) ENGINE = MergeTree ORDER BY n")
	u, err := url.Parse(ch.URL("default"))
	if err != nil {
		t.Fatal(err)
	}
	password, _ := u.User.Password()
	u.User = url.UserPassword("reader", password)
	conn := dial(t, u.String())
	if n := number(t, conn, "SELECT count() FROM kept"); n != 0 {
		t.Errorf("%d rows", n)
	}
	var exception *clickhouse.Exception
	if err := conn.Exec(t.Context(), "INSERT INTO kept VALUES (1)"); !errors.As(err, &exception) || exception.Code != 497 {
		t.Errorf("an insert without the grant: %v, want code 497", err)
	}
}

func TestClickHouse(t *testing.T) {
	temp := tempDir(t)
	ch := startClickHouse(t, ClickHouseOptions{MaxMemory: 1 << 30})
	native, web := dial(t, ch.URL("default")), dial(t, ch.HTTPURL("default"))
	do(t, native, "CREATE TABLE kept (how String, n UInt64) ENGINE = MergeTree ORDER BY how")

	t.Run("it answers by both protocols, in any database", func(t *testing.T) {
		do(t, native, "CREATE DATABASE IF NOT EXISTS other")
		for _, address := range []string{ch.URL("other"), ch.HTTPURL("other")} {
			conn := dial(t, address)
			do(t, conn, "CREATE TABLE IF NOT EXISTS t (n UInt64) ENGINE = MergeTree ORDER BY n")
			batch, err := conn.PrepareBatch(t.Context(), "INSERT INTO t")
			if err != nil {
				t.Fatal(err)
			}
			for n := range uint64(1000) {
				if err := batch.Append(n); err != nil {
					t.Fatal(err)
				}
			}
			if err := batch.Send(); err != nil {
				t.Fatal(err)
			}
		}
		if n := number(t, web, "SELECT count() FROM other.t"); n != 2000 {
			t.Errorf("%d rows, want 2000", n)
		}
		if n := number(t, native, "SELECT toUInt64(value) FROM system.server_settings WHERE name = 'max_server_memory_usage'"); n != 1<<30 {
			t.Errorf("max_server_memory_usage = %d", n)
		}
	})
	t.Run("nobody can log in as the default user", func(t *testing.T) {
		for _, address := range []string{ch.URL("default"), ch.HTTPURL("default")} {
			u, err := url.Parse(address)
			if err != nil {
				t.Fatal(err)
			}
			u.User = url.User("default")
			conn := dial(t, u.String())
			if err := conn.Exec(t.Context(), "SELECT 1"); err == nil || !strings.Contains(err.Error(), "overflown session count") {
				t.Errorf("error is %v, want the one of too many sessions", err)
			}
		}
	})
	t.Run("rows survive on the same ports", func(t *testing.T) {
		for name, down := range map[string]func(){
			"a restart": func() {},
			"a kill":    ch.Kill,
			"a kill of a paused server": func() {
				ch.Pause()
				ch.Kill()
				ch.Kill()
			},
			"a restart of a paused server": ch.Pause,
		} {
			do(t, native, "INSERT INTO kept VALUES ('"+name+"', 1)")
			down()
			if err := ch.Restart(t.Context()); err != nil {
				t.Fatalf("%s: %v", name, err)
			}
			// The same pools: all that happened to them is a new connection.
			for _, conn := range []driver.Conn{native, dial(t, ch.HTTPURL("default"))} {
				if n := number(t, conn, "SELECT count() FROM kept WHERE how = '"+name+"'"); n != 1 {
					t.Errorf("%s: %d rows, want 1", name, n)
				}
			}
		}
		if n := ch.Restarts(); n != 0 {
			t.Errorf("%d restarts are counted that were asked for", n)
		}
	})
	t.Run("a killed server stays down until Restart", func(t *testing.T) {
		ch.Kill()
		if !portFree(t.Context(), ch.tcpPort) {
			t.Error("something listens on its port")
		}
		if err := ch.Restart(t.Context()); err != nil {
			t.Fatal(err)
		}
	})
	t.Run("a server that dies by itself comes back", func(t *testing.T) {
		for want := 1; want <= 3; want++ {
			do(t, native, "INSERT INTO kept VALUES ('itself', 1)")
			if err := syscall.Kill(ch.PID(), syscall.SIGKILL); err != nil {
				t.Fatal(err)
			}
			eventually(t, "it is started again", func() bool { return ch.Restarts() == want })
			if n := number(t, native, "SELECT count() FROM kept WHERE how = 'itself'"); n != uint64(want) {
				t.Errorf("%d rows, want %d", n, want)
			}
		}
	})
	t.Run("a paused server does not answer and a resumed one does", func(t *testing.T) {
		ch.Pause()
		ctx, cancel := context.WithTimeout(t.Context(), 100*time.Millisecond)
		defer cancel()
		request, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://"+address(ch.httpPort)+"/ping", nil)
		if err != nil {
			t.Fatal(err)
		}
		if response, err := http.DefaultClient.Do(request); err == nil {
			_ = response.Body.Close()
			t.Error("it answers while paused")
		}
		ch.Resume()
		if err := ch.ping(t.Context(), ch.URL("default")); err != nil {
			t.Error(err)
		}
	})
	t.Run("a second server on its directory is refused", func(t *testing.T) {
		for _, options := range []ClickHouseOptions{
			{Dir: ch.Dir},
			{Dir: ch.Dir, TCPPort: ch.tcpPort, HTTPPort: ch.httpPort, Password: ch.password},
		} {
			if _, err := StartClickHouse(t.Context(), options); err == nil {
				t.Error("it was started")
			}
		}
		if err := ch.ping(t.Context(), ch.URL("default")); err != nil {
			t.Error(err)
		}
	})
	t.Run("stopping leaves nothing", func(t *testing.T) {
		for range 2 {
			if err := ch.Stop(t.Context()); err != nil {
				t.Error(err)
			}
		}
		ch.Kill()
		if left := leftovers(t, temp); len(left) > 0 {
			t.Errorf("left behind: %q", left)
		}
		if err := ch.Restart(t.Context()); err == nil {
			t.Error("a server whose data are gone can be started")
		}
	})
}

func TestClickHouseInADirectoryOfTheCaller(t *testing.T) {
	dir := t.TempDir()
	const password = `it's <&"> a /password?@`
	for n := range uint64(3) {
		ch := startClickHouse(t, ClickHouseOptions{Dir: dir, Password: password})
		conn := dial(t, ch.URL("default"))
		do(t, conn, "CREATE TABLE IF NOT EXISTS kept (n UInt64) ENGINE = MergeTree ORDER BY n")
		if got := number(t, conn, "SELECT count() FROM kept"); got != n {
			t.Errorf("%d rows, want %d", got, n)
		}
		do(t, conn, "INSERT INTO kept VALUES (1)")
		if err := ch.Stop(t.Context()); err != nil {
			t.Fatal(err)
		}
		if _, err := os.Stat(dir); err != nil {
			t.Error(err)
		}
		if err := ch.Restart(t.Context()); err != nil {
			t.Errorf("after Stop, with a directory that is kept: %v", err)
		}
		if err := ch.Stop(t.Context()); err != nil {
			t.Fatal(err)
		}
	}
}

func TestClickHouseSurvivesWhatItsClientsDo(t *testing.T) {
	ch := startClickHouse(t, ClickHouseOptions{})
	pid := ch.PID()
	for range 5 {
		abuse(t, ch)
	}
	if err := ch.ping(t.Context(), ch.URL("default")); err != nil {
		t.Error(err)
	}
	if err := ch.ping(t.Context(), ch.HTTPURL("default")); err != nil {
		t.Error(err)
	}
	if ch.PID() != pid || ch.Restarts() != 0 {
		t.Errorf("it died %d times", ch.Restarts())
	}
}

func TestClickHouseThatIsNotInteractiveDiesOfItsClientsAndComesBack(t *testing.T) {
	ch := startClickHouse(t, ClickHouseOptions{NonInteractive: true})
	first := ch.current()
	eventually(t, "it dies", func() bool {
		abuse(t, ch)
		return first.ended() // what goes on after that would kill its successor before that is ready
	})
	eventually(t, "it is started again", func() bool { return ch.Restarts() > 0 })
	eventually(t, "it answers again", func() bool { return ch.ping(t.Context(), ch.URL("default")) == nil })
}

// abuse does what makes a connection's thread throw. Nothing of it is expected to succeed.
func abuse(t *testing.T, ch *ClickHouse) {
	t.Helper()
	for _, address := range []string{ch.URL("default"), ch.HTTPURL("default")} {
		u, err := url.Parse(address)
		if err != nil {
			t.Fatal(err)
		}
		good := u.User
		u.User = url.UserPassword(clickHouseUser, "wrong")
		_ = ch.ping(t.Context(), u.String())
		u.User = url.UserPassword("nobody", "wrong")
		_ = ch.ping(t.Context(), u.String())
		u.User, u.Path = good, "/nowhere"
		_ = ch.ping(t.Context(), u.String())
	}
	hangUp(t, address(ch.tcpPort), "")
	hangUp(t, address(ch.tcpPort), "GET / HTTP/1.1\r\n\r\n")
	hangUp(t, address(ch.tcpPort), "\x00\x0aclient")
	hangUp(t, address(ch.httpPort), "")
	hangUp(t, address(ch.httpPort), "POST /?query=SELECT+1 HTTP/1.1\r\nContent-Length: 100\r\n\r\nhalf")
	hangUp(t, address(ch.httpPort), "nonsense\r\n\r\n")
	leaveMidway(t, ch)
}

// hangUp sends something and then resets the connection.
func hangUp(t *testing.T, address, text string) {
	t.Helper()
	var dialer net.Dialer
	conn, err := dialer.DialContext(t.Context(), "tcp", address)
	if err != nil {
		return // it may be down, which is what one of the tests is after
	}
	_, _ = io.WriteString(conn, text)
	_ = conn.(*net.TCPConn).SetLinger(0)
	_ = conn.Close()
}

// leaveMidway goes away while the server is at work for it, by both protocols.
func leaveMidway(t *testing.T, ch *ClickHouse) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	request, err := http.NewRequestWithContext(ctx, http.MethodPost, ch.HTTPURL(""), strings.NewReader("SELECT sleep(1), number FROM numbers(1000000)"))
	if err != nil {
		t.Fatal(err)
	}
	if response, err := http.DefaultClient.Do(request); err == nil {
		_, _ = io.Copy(io.Discard, response.Body)
		_ = response.Body.Close()
	}
	http.DefaultClient.CloseIdleConnections()
	options, err := clickhouse.ParseDSN(ch.URL("default"))
	if err != nil {
		t.Fatal(err)
	}
	conn, err := clickhouse.Open(options)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = conn.Close() }()
	ctx, cancel = context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	_ = conn.Exec(ctx, "INSERT INTO FUNCTION null('n UInt64') SELECT number + sleepEachRow(0.001) FROM numbers(100000)")
}
