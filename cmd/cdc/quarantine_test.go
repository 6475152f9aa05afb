package main

import (
	"bufio"
	"fmt"
	"os"
	"slices"
	"strconv"
	"strings"
	"testing"

	"github.com/creack/pty"
)

// poison has a daemon put n events into quarantine, and one delivered, and then stops the daemon. It returns the ids in quarantine.
func (l *line) poison(t *testing.T, n int) []string {
	t.Helper()
	d := l.start(t)
	d.wait(t, `"message":"streaming"`)
	l.exec(t, `INSERT INTO event_outbox (event_type, event_date_time, environment, event_context)
		SELECT 'poison', 'infinity', 'test', jsonb_build_object('email', 'zoe@example.com', 'n', n) FROM generate_series(1, $1) n`, n)
	l.write(t, 1, 1)
	eventually(t, func() string {
		if n := l.count(t, `SELECT count(*) FROM event_outbox WHERE processed`); n != 1 {
			return fmt.Sprintf("%d events are processed, want 1", n)
		}
		return ""
	})
	if code := d.stop(t); code != 0 {
		t.Fatalf("exit code %d, want 0", code)
	}
	ids := l.ids(t, `SELECT id::text FROM sluicebox.quarantine WHERE slot = $1 ORDER BY id`)
	if len(ids) != n {
		t.Fatalf("%d events are in quarantine, want %d", len(ids), n)
	}
	return ids
}

// ids asks for ids of the slot, as text.
func (l *line) ids(t *testing.T, sql string) (ids []string) {
	t.Helper()
	if err := l.pg.QueryRow(t.Context(), `SELECT ARRAY (`+sql+`)`, l.slot).Scan(&ids); err != nil {
		t.Fatal(err)
	}
	return ids
}

func (l *line) dropped(t *testing.T) []string {
	t.Helper()
	return l.ids(t, `SELECT id::text FROM sluicebox.quarantine WHERE slot = $1 AND dropped_at IS NOT NULL ORDER BY id`)
}

func (l *line) requested(t *testing.T) []string {
	t.Helper()
	return l.ids(t, `SELECT id::text FROM sluicebox.redelivery WHERE slot = $1 ORDER BY id`)
}

func sameIDs(t *testing.T, what string, got []string, want ...string) {
	t.Helper()
	if !slices.Equal(got, want) {
		t.Errorf("%s: %v, want %v", what, got, want)
	}
}

// listing is the JSON of `cdc quarantine list`.
type listing struct {
	Total int
	Rows  []struct {
		ID        int64
		EventType string `json:"event_type"`
		Reason    string
		State     string
	}
}

// unknown is an id that no test writes.
const unknown = "987654321"

func TestQuarantineList(t *testing.T) {
	t.Parallel()
	l := newLine(t)
	l.operate(t, "quarantine", "list").want(t, 0, "0 rows in quarantine")
	ids := l.poison(t, 3)
	t.Run("list gives the newest first, with the reason", func(t *testing.T) {
		list := decode[listing](t, l.operate(t, "quarantine", "list", "--json"))
		if list.Total != 3 || len(list.Rows) != 3 {
			t.Fatalf("%+v, want 3 rows", list)
		}
		for i, row := range list.Rows {
			want := ids[len(ids)-1-i]
			if strconv.FormatInt(row.ID, 10) != want || row.State != "held" || row.EventType != "poison" ||
				!strings.Contains(row.Reason, "DateTime64") {
				t.Errorf("row %d: %+v, want id %s, held", i, row, want)
			}
		}
		l.operate(t, "quarantine", "list").want(t, 0,
			"EVENT TYPE", ids[0]+" poison", "DateTime64(6) has no such value", "3 rows in quarantine\n")
		short := l.operate(t, "quarantine", "list", "--limit", "1")
		short.want(t, 0, ids[2]+" poison", "3 rows in quarantine; the newest 1 are listed")
		if strings.Count(short.stdout, "poison") != 1 {
			t.Error("more than one row is listed")
		}
	})
	t.Run("show gives the content of the event", func(t *testing.T) {
		l.operate(t, "quarantine", "show", ids[1]).want(t, 0,
			"infinity", "poison", "held", `"email": "zoe@example.com"`, "DateTime64(6) has no such value")
		shown := decode[[]struct {
			ID    int64
			State string
			Event struct {
				Time    string          `json:"event_date_time"`
				Context struct{ N int } `json:"event_context"`
			}
		}](t, l.operate(t, "quarantine", "show", ids[1], ids[0], "--json"))
		if len(shown) != 2 || shown[0].Event.Context.N != 1 || shown[1].Event.Context.N != 2 || shown[1].Event.Time != "infinity" {
			t.Errorf("%+v", shown)
		}
	})
	t.Run("show names every id that is not in quarantine", func(t *testing.T) {
		shown := l.operate(t, "quarantine", "show", ids[0], unknown)
		shown.want(t, 1, "not in quarantine: "+unknown)
		if shown.stdout != "" {
			t.Errorf("it prints %q", shown.stdout)
		}
	})
	t.Run("a row whose outbox row is gone is told of", func(t *testing.T) {
		l.exec(t, `DELETE FROM event_outbox WHERE id = $1::text::bigint`, ids[2])
		l.operate(t, "quarantine", "list").want(t, 0, ids[2]+" (outbox row is gone)")
		l.operate(t, "quarantine", "show", ids[2]).want(t, 0, "the outbox row is gone", "DateTime64(6) has no such value")
	})
}

func TestQuarantineDrop(t *testing.T) {
	t.Parallel()
	l := newLine(t)
	ids := l.poison(t, 4)
	t.Run("an unknown id changes nothing", func(t *testing.T) {
		l.operate(t, "quarantine", "drop", ids[0], unknown, "--yes").want(t, 1, "not in quarantine: "+unknown)
		sameIDs(t, "dropped", l.dropped(t))
	})
	t.Run("without a terminal to ask on, --yes is required", func(t *testing.T) {
		l.operate(t, "quarantine", "drop", ids[0]).want(t, 2, "pass --yes")
		sameIDs(t, "dropped", l.dropped(t))
	})
	t.Run("on a terminal it asks, and takes no for an answer", func(t *testing.T) {
		for _, answer := range []string{"no", "", "yes"} {
			want := []string{}
			if answer == "yes" {
				want = ids[:1]
			}
			cmd := l.operator(t, "quarantine", "drop", ids[0])
			terminal, err := pty.Start(cmd)
			if err != nil {
				t.Fatal(err)
			}
			reader := bufio.NewReader(terminal)
			if asked, err := reader.ReadString(']'); err != nil || !strings.Contains(asked, "Give up for good? [y/N]") {
				t.Fatalf("it asks %q, %v", asked, err)
			}
			if _, err := terminal.WriteString(answer + "\n"); err != nil {
				t.Fatal(err)
			}
			_, _ = reader.WriteTo(&strings.Builder{}) // to its end, which Linux tells of by an error
			if err := cmd.Wait(); (err == nil) != (answer == "yes") {
				t.Errorf("after %q it ends with %v", answer, err)
			}
			_ = terminal.Close()
			sameIDs(t, "dropped after "+answer, l.dropped(t), want...)
		}
	})
	t.Run("a dropped row is listed with --all only, and its request is taken back", func(t *testing.T) {
		l.exec(t, `INSERT INTO sluicebox.redelivery (slot, id) VALUES ($1, $2::text::bigint)`, l.slot, ids[1])
		l.operate(t, "quarantine", "drop", ids[1], ids[1], "--yes").want(t, 0, "dropped: 1 row\n")
		sameIDs(t, "dropped", l.dropped(t), ids[0], ids[1])
		sameIDs(t, "requested", l.requested(t))
		if short := l.operate(t, "quarantine", "list"); strings.Contains(short.stdout, "dropped") {
			t.Errorf("a dropped row is listed:\n%s", short.stdout)
		}
		list := decode[listing](t, l.operate(t, "quarantine", "list", "--all", "--json"))
		if list.Total != 4 || list.Rows[3].State != "dropped" {
			t.Errorf("%+v", list)
		}
	})
	t.Run("--all takes those with a reason", func(t *testing.T) {
		l.exec(t, `UPDATE sluicebox.quarantine SET reason = 'Cannot parse JSON' WHERE slot = $1 AND id = $2::text::bigint`, l.slot, ids[3])
		l.operate(t, "quarantine", "drop", "--all", "--reason-like", "nothing like it", "--yes").want(t, 0, "nothing is in quarantine that")
		l.operate(t, "quarantine", "drop", "--all", "--reason-like", "parse json", "--yes").want(t, 0, "dropped: 1 row\n")
		sameIDs(t, "dropped", l.dropped(t), ids[0], ids[1], ids[3])
		l.operate(t, "quarantine", "drop", "--all", "--yes").want(t, 0, "dropped: 1 row\n")
		sameIDs(t, "dropped", l.dropped(t), ids...)
	})
	t.Run("a backfill leaves dropped rows alone, and their outbox rows are as they were", func(t *testing.T) {
		l.exec(t, `UPDATE event_outbox SET event_date_time = now() WHERE event_type = 'poison'`) // it would be delivered
		l.notRead(t)
		l.exec(t, `SELECT pg_drop_replication_slot($1)`, l.slot)
		d := l.start(t)
		d.wait(t, "backfill is complete")
		const untouched = `SELECT count(*) FROM event_outbox WHERE event_type = 'poison' AND NOT processed AND processed_at IS NULL`
		if n := l.count(t, untouched); n != 4 {
			t.Errorf("%d dropped rows are unprocessed, want 4", n)
		}
		l.same(t)
	})
}

func TestQuarantineRetry(t *testing.T) {
	t.Parallel()
	t.Run("requests are made for all rows or none", func(t *testing.T) {
		t.Parallel()
		l := newLine(t)
		ids := l.poison(t, 3)
		l.operate(t, "quarantine", "drop", ids[0], "--yes").want(t, 0)

		l.operate(t, "quarantine", "retry", ids[0], ids[1], unknown, "--wait", "0s").want(t, 1, "not in quarantine: "+unknown)
		sameIDs(t, "requested", l.requested(t))
		sameIDs(t, "dropped", l.dropped(t), ids[0])

		l.operate(t, "quarantine", "retry", "--all", "--wait", "0s").want(t, 0, "requested: 2 rows")
		sameIDs(t, "requested", l.requested(t), ids[1], ids[2])
		l.operate(t, "quarantine", "list").want(t, 0, "retry requested", "2 rows in quarantine")

		l.operate(t, "quarantine", "retry", ids[0], "--wait", "0s").want(t, 0, "requested: 1 row")
		sameIDs(t, "requested", l.requested(t), ids...)
		sameIDs(t, "dropped", l.dropped(t))
	})
	t.Run("it says who does not take a request, which stays", func(t *testing.T) {
		t.Parallel()
		l := newLine(t)
		ids := l.poison(t, 1)
		retry := func() ended { return l.operate(t, "quarantine", "retry", ids[0], "--wait", "100ms") }
		retry().want(t, 1, ids[0]+" still waiting: no daemon leads", "0 of 1 row delivered")
		l.lead(t, "stream")
		retry().want(t, 1, ids[0]+" still waiting: a daemon leads", "0 of 1 row delivered")
		sameIDs(t, "requested", l.requested(t), ids[0])
	})
	t.Run("it says what became of each row", func(t *testing.T) {
		t.Parallel()
		l := newLine(t)
		ids := l.poison(t, 2)
		cmd := l.operator(t, "quarantine", "retry", "--all", "--wait", patience.String())
		out, err := cmd.StdoutPipe()
		if err != nil {
			t.Fatal(err)
		}
		cmd.Stderr = os.Stderr
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		eventually(t, func() string {
			if n := len(l.requested(t)); n != 2 {
				return fmt.Sprintf("%d rows are requested, want 2", n)
			}
			return ""
		})
		// As the daemon does when it has delivered the one, and ClickHouse has refused the other.
		l.exec(t, `WITH taken AS (DELETE FROM sluicebox.redelivery WHERE slot = $1)
			DELETE FROM sluicebox.quarantine WHERE slot = $1 AND id = $2::text::bigint`, l.slot, ids[0])
		l.exec(t, `UPDATE sluicebox.quarantine SET reason = 'no better' WHERE slot = $1`, l.slot)
		said, err := bufio.NewReader(out).ReadString(0)
		if want := ids[0] + "  delivered\n" + ids[1] + "  refused again: "; !strings.HasPrefix(said, want) {
			t.Errorf("it says %q, %v; want %q", said, err, want)
		}
		if err := cmd.Wait(); err == nil || cmd.ProcessState.ExitCode() != 1 {
			t.Errorf("it ends with %v, want exit code 1", err)
		}
	})
	t.Run("the daemon delivers a row that was mended, and refuses one that was not", func(t *testing.T) {
		t.Parallel()
		l := newLine(t)
		ids := l.poison(t, 2)
		d := l.start(t)
		d.wait(t, `"message":"streaming"`)
		l.exec(t, `UPDATE event_outbox SET event_date_time = now() WHERE id = $1::text::bigint`, ids[0])
		l.exec(t, `UPDATE event_outbox SET event_date_time = '-infinity' WHERE id = $1::text::bigint`, ids[1])
		l.operate(t, "quarantine", "retry", ids[0], "--wait", patience.String()).want(t, 0, ids[0]+" delivered\n")
		l.operate(t, "quarantine", "retry", "--all", "--wait", patience.String()).want(t, 1,
			ids[1]+" refused again: event_date_time is ", "0 of 1 row delivered")
		sameIDs(t, "requested", l.requested(t))
		l.operate(t, "quarantine", "list").want(t, 0, ids[1]+" poison", "1 row in quarantine")
		if n := l.count(t, `SELECT count(*) FROM event_outbox WHERE processed`); n != 2 {
			t.Errorf("%d events are processed, want 2", n)
		}
		l.same(t)
	})
}

// TestQuarantineEscapes has characters in an event that would do something to a terminal, and that JSON does not escape.
func TestQuarantineEscapes(t *testing.T) {
	t.Parallel()
	l := newLine(t)
	d := l.start(t)
	d.wait(t, `"message":"streaming"`)
	l.exec(t, `INSERT INTO event_outbox (event_type, event_date_time, environment, event_context) VALUES
		('poison' || chr(155) || '2J', 'infinity', 'test', jsonb_build_object('a' || chr(155) || '31m', chr(155) || '2J' || chr(8238) || chr(127)))`)
	eventually(t, func() string {
		if l.count(t, `SELECT count(*) FROM sluicebox.quarantine`) == 0 {
			return "nothing is in quarantine"
		}
		return ""
	})
	for _, args := range [][]string{{"quarantine", "show", "1"}, {"quarantine", "show", "1", "--json"}, {"quarantine", "list"}, {"quarantine", "list", "--json"}} {
		if r := l.operate(t, args...); !strings.Contains(r.stdout, "poison") || strings.ContainsAny(r.stdout, "\u009b\u202e\u007f") {
			t.Errorf("%q prints %q", args, r.stdout)
		}
	}
}
