package main

import (
	"net"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// TestSystemd holds that a unit of Type=notify is told when the daemon serves, what it is doing, that it lives, and when it stops.
func TestSystemd(t *testing.T) {
	t.Parallel()
	path := filepath.Join(t.TempDir(), "notify")
	socket, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Name: path, Net: "unixgram"})
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = socket.Close() }()
	told := func() string {
		if err := socket.SetReadDeadline(time.Now().Add(patience)); err != nil {
			t.Fatal(err)
		}
		message := make([]byte, 1024)
		n, err := socket.Read(message)
		if err != nil {
			t.Fatal(err)
		}
		return string(message[:n])
	}
	toldOf := func(text string) {
		for message := told(); !strings.Contains(message, text); message = told() {
			if strings.Contains(message, "STOPPING=1") {
				t.Fatalf("told %q before %q", message, text)
			}
		}
	}

	l := newLine(t)
	d := l.start(t, "NOTIFY_SOCKET="+path, "WATCHDOG_USEC=300000")
	if first := told(); !strings.HasPrefix(first, "WATCHDOG=1\nREADY=1\nSTATUS=") {
		t.Errorf("told %q first, want that the daemon is ready", first)
	}
	toldOf("STATUS=streaming")
	toldOf("WATCHDOG=1")
	if code := d.stop(t); code != 0 {
		t.Errorf("exit code %d", code)
	}
	toldOf("STOPPING=1")
}
