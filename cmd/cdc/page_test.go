package main

import (
	"testing"

	"github.com/chromedp/chromedp"
)

// TestStatusPage looks at the page of a daemon as an operator does.
func TestStatusPage(t *testing.T) {
	t.Parallel()
	b := newBrowser(t)
	l, server := newOwnSinkLine(t)
	d := l.start(t)
	d.wait(t, `"message":"streaming"`)
	l.write(t, 10, 10)
	l.allMarked(t)
	b.do(t, chromedp.EmulateViewport(1280, 900), chromedp.Navigate(d.url+"/"))

	t.Run("it changes by itself while events are delivered", func(t *testing.T) {
		b.reads(t, ".line .wide", "delivered 10")
		evaluate[bool](t, b, `window.unchanged = true`)
		l.write(t, 25, 5)
		b.reads(t, ".line .wide", "delivered 35")
		b.reads(t, ".verdict", "Fine")
		b.reads(t, ".verdict", "Everything that was committed is in ClickHouse")
		b.reads(t, "table tbody", "delay")
		b.reads(t, "dl", "reserved")
		if !evaluate[bool](t, b, `window.unchanged === true`) {
			t.Error("the page was loaded anew")
		}
	})
	t.Run("it shows what a doctor finds", func(t *testing.T) {
		b.reads(t, "section[aria-labelledby=checks]", "postgres.fsync") // off in tests
		b.reads(t, "section[aria-labelledby=checks]", "ALTER SYSTEM SET fsync = on")
	})
	t.Run("it fits, wide and narrow, light and dark", func(t *testing.T) {
		for _, width := range []int64{1280, 768, 360, 320} {
			b.do(t, chromedp.EmulateViewport(width, 800))
			if got := evaluate[int64](t, b, `document.documentElement.scrollWidth`); got > width {
				t.Errorf("on a screen of %d pixels it is %d wide", width, got)
			}
		}
		colours := map[string]bool{}
		for _, name := range []string{"light", "dark"} {
			b.do(t, theme(name))
			colours[evaluate[string](t, b, `getComputedStyle(document.body).backgroundColor`)] = true
		}
		if len(colours) != 2 {
			t.Errorf("both themes have the background %v", colours)
		}
	})
	t.Run("it tells that ClickHouse is down, what waits, and that it came back", func(t *testing.T) {
		server.Kill()
		l.write(t, 100, 100)
		b.reads(t, ".verdict", "ClickHouse holds delivery up for")
		b.reads(t, ".line .wide .bad", "ClickHouse")
		b.reads(t, ".line .wide", "in flight: 100 rows")
		b.reads(t, ".verdict .reason", "connect")
		if err := server.Restart(t.Context()); err != nil {
			t.Fatal(err)
		}
		b.reads(t, ".verdict", "Fine")
		b.reads(t, ".line .wide", "delivered 135")
		b.reads(t, ".line .wide", "in flight: 0 rows")
	})
	poison := func() {
		l.exec(t, `INSERT INTO event_outbox (event_type, event_date_time, environment, event_context)
			VALUES ('poison', 'infinity', 'test', '{"email": "zoe@example.com"}')`)
	}
	mend := func() {
		l.exec(t, `UPDATE event_outbox SET event_date_time = now() WHERE event_date_time = 'infinity'`)
	}
	retry := func(t *testing.T) {
		t.Helper()
		b.reads(t, "section[aria-labelledby=quarantine]", "DateTime64(6) has no such value")
		b.reads(t, ".verdict", "1 row in quarantine")
		if evaluate[bool](t, b, `document.documentElement.outerHTML.includes("zoe")`) {
			t.Error("the content of an event is shown")
		}
		mend()
		b.do(t, chromedp.Click("section[aria-labelledby=quarantine] button"))
		b.reads(t, "section[aria-labelledby=quarantine]", "Nothing is in quarantine.")
		b.reads(t, ".verdict", "Fine")
		l.allMarked(t)
	}
	t.Run("a row in quarantine is retried with a click", func(t *testing.T) {
		poison()
		retry(t)
	})
	t.Run("it works without JavaScript", func(t *testing.T) {
		b.do(t, script(false), chromedp.Navigate(d.url+"/"))
		b.reads(t, ".verdict", "Fine")
		b.reads(t, "footer", "Reloads every 5 seconds.")
		poison()
		retry(t)
		b.do(t, script(true))
	})
	second := l.start(t)
	t.Run("a standby says so, and who leads", func(t *testing.T) {
		second.wait(t, "standing by")
		b.do(t, chromedp.Navigate(second.url+"/"))
		b.reads(t, ".verdict", "Standing by; ")
		b.reads(t, ".verdict", " leads: streaming")
	})
	b.do(t, chromedp.Navigate("about:blank")) // the script ends before the daemons do
	b.wellBehaved(t, d.url, second.url)
}
