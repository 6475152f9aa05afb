package systemd_test

import (
	"fmt"
	"net"
	"net/http"
	"net/http/httptest"
	"path/filepath"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/rs/zerolog"
	"go.uber.org/goleak"

	"github.com/sluicebox/sluicebox/internal/systemd"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// patience is for a machine that is busy; a test that fails takes that long.
const patience = time.Minute

// listen is what systemd does: it reads what programs tell it.
func listen(t *testing.T) *net.UnixConn {
	t.Helper()
	path := filepath.Join(t.TempDir(), "notify")
	socket, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Name: path, Net: "unixgram"})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = socket.Close() })
	if err := socket.SetReadDeadline(time.Now().Add(patience)); err != nil {
		t.Fatal(err)
	}
	t.Setenv("NOTIFY_SOCKET", path)
	t.Setenv("WATCHDOG_USEC", "30000") // an answer every 10 ms
	return socket
}

func read(t *testing.T, socket *net.UnixConn) string {
	t.Helper()
	message := make([]byte, 4096)
	n, err := socket.Read(message)
	if err != nil {
		t.Fatal(err)
	}
	return string(message[:n])
}

// health answers /livez and /readyz with what is sent to it, one after the other, and then with the last.
func health(t *testing.T, answers map[string][]http.HandlerFunc) systemd.Health {
	t.Helper()
	var mu sync.Mutex
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		mu.Lock()
		all := answers[r.URL.Path]
		if len(all) > 1 {
			answers[r.URL.Path] = all[1:]
		}
		mu.Unlock()
		all[0](w, r)
	}))
	t.Cleanup(server.Close)
	return systemd.Health{Live: server.URL + "/livez", State: server.URL + "/readyz"}
}

func say(status int, text string) http.HandlerFunc {
	return func(w http.ResponseWriter, _ *http.Request) {
		w.WriteHeader(status)
		_, _ = w.Write([]byte(text))
	}
}

func TestNotify(t *testing.T) {
	t.Run("systemd is told that the program serves, what it does, that it lives, and that it stops", func(t *testing.T) {
		socket := listen(t)
		stop := systemd.Notify(t.Context(), health(t, map[string][]http.HandlerFunc{
			"/livez":  {say(200, "ok")},
			"/readyz": {say(503, "paused: ClickHouse is down\nMAINPID=1\n"), say(200, "streaming\n")},
		}), zerolog.Nop())
		for _, want := range []string{
			"WATCHDOG=1\nREADY=1\nSTATUS=paused: ClickHouse is down MAINPID=1", "WATCHDOG=1\nSTATUS=streaming", "WATCHDOG=1\nSTATUS=streaming",
		} {
			if got := read(t, socket); got != want {
				t.Errorf("told %q, want %q", got, want)
			}
		}
		stop()
		const streaming = "WATCHDOG=1\nSTATUS=streaming"
		last := streaming
		for last == streaming { // told meanwhile
			last = read(t, socket)
		}
		if last != "STOPPING=1" {
			t.Errorf("told %q, want STOPPING=1", last)
		}
	})
	t.Run("a program that does not answer, or with an error, is neither ready nor alive", func(t *testing.T) {
		socket := listen(t)
		var asked atomic.Int64
		live := func(answer http.HandlerFunc) http.HandlerFunc {
			return func(w http.ResponseWriter, r *http.Request) {
				asked.Add(1)
				answer(w, r)
			}
		}
		cut := live(func(http.ResponseWriter, *http.Request) { panic(http.ErrAbortHandler) })
		defer systemd.Notify(t.Context(), health(t, map[string][]http.HandlerFunc{
			"/livez":  {cut, live(say(500, "")), live(say(200, "ok")), cut, live(say(503, "")), live(say(200, "ok"))},
			"/readyz": {func(w http.ResponseWriter, _ *http.Request) { _, _ = fmt.Fprint(w, asked.Load()) }},
		}), zerolog.Nop())()
		for _, want := range []string{"WATCHDOG=1\nREADY=1\nSTATUS=3", "WATCHDOG=1\nSTATUS=6"} {
			if got := read(t, socket); got != want {
				t.Errorf("told %q, want %q", got, want)
			}
		}
	})
}
