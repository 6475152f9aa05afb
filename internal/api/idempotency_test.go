package api_test

import (
	"net/http"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

func TestIdempotency(t *testing.T) {
	t.Parallel()
	s := start(t)

	t.Run("a request that is sent again gets the first answer and creates nothing", func(t *testing.T) {
		t.Parallel()
		first := s.create(t, "again@example.com", "Idempotency-Key", "again")
		if first.status != http.StatusCreated || first.header.Get("Idempotency-Replayed") != "" {
			t.Fatalf("answer %+v", first)
		}
		second := s.create(t, "again@example.com", "Idempotency-Key", "again")
		if second.header.Get("Idempotency-Replayed") != "true" {
			t.Errorf("the second answer does not tell that it is one: %v", second.header)
		}
		for _, header := range []string{"Date", "X-Request-Id", "Idempotency-Replayed"} {
			first.header.Del(header)
			second.header.Del(header)
		}
		if diff := cmp.Diff(first, second, cmp.AllowUnexported(reply{})); diff != "" {
			t.Errorf("answers (-first +second):\n%s", diff)
		}
		if n := s.count(t, `SELECT count(*) FROM event_outbox WHERE event_context->>'email' = 'again@example.com'`); n != 1 {
			t.Errorf("%d events", n)
		}
	})

	t.Run("50 parallel requests with one key create one user", func(t *testing.T) {
		t.Parallel()
		type answer struct{ body, location, replayed string }
		answers := inParallel(50, func(int) answer {
			r := s.create(t, "parallel@example.com", "Idempotency-Key", "parallel")
			if r.status != http.StatusCreated {
				t.Errorf("answer %d %s", r.status, r.body)
			}
			return answer{r.body, r.header.Get("Location"), r.header.Get("Idempotency-Replayed")}
		})
		for a, n := range answers {
			if want := map[string]int{"": 1, "true": 49}[a.replayed]; n != want || len(answers) != 2 {
				t.Errorf("%d times %+v", n, a)
			}
		}
		if n := s.count(t, `SELECT count(*) FROM event_outbox WHERE event_context->>'email' = 'parallel@example.com'`); n != 1 {
			t.Errorf("%d events", n)
		}
	})

	t.Run("a key that was used for another request is refused", func(t *testing.T) {
		t.Parallel()
		if r := s.create(t, "one@example.com", "Idempotency-Key", "reused"); r.status != http.StatusCreated {
			t.Fatalf("answer %d %s", r.status, r.body)
		}
		p := wantProblem(t, s.create(t, "other@example.com", "Idempotency-Key", "reused"), http.StatusUnprocessableEntity)
		if diff := cmp.Diff([]string{"header.Idempotency-Key: was used for another request"}, p.fields()); diff != "" {
			t.Error(diff)
		}
		if n := s.count(t, `SELECT count(*) FROM users WHERE email = 'other@example.com'`); n != 0 {
			t.Error("the other request was done")
		}
	})

	t.Run("a request that was refused leaves its key free", func(t *testing.T) {
		t.Parallel()
		if r := s.create(t, "taken@example.com"); r.status != http.StatusCreated {
			t.Fatalf("answer %d %s", r.status, r.body)
		}
		wantProblem(t, s.create(t, "taken@example.com", "Idempotency-Key", "free"), http.StatusConflict)
		if r := s.create(t, "free@example.com", "Idempotency-Key", "free"); r.status != http.StatusCreated {
			t.Errorf("answer %d %s", r.status, r.body)
		}
	})

	t.Run("two keys are two requests", func(t *testing.T) {
		t.Parallel()
		if r := s.create(t, "two@example.com", "Idempotency-Key", "first"); r.status != http.StatusCreated {
			t.Fatalf("answer %d %s", r.status, r.body)
		}
		wantProblem(t, s.create(t, "two@example.com", "Idempotency-Key", "second"), http.StatusConflict)
	})

	for name, keys := range map[string][]string{
		"blank": {""}, "too long": {strings.Repeat("k", 256)}, "with a space": {"a b"}, "not ASCII": {"kéy"}, "there twice": {"a", "b"},
	} {
		t.Run("a key that is "+name+" is refused", func(t *testing.T) {
			t.Parallel()
			var headers []string
			for _, key := range keys {
				headers = append(headers, "Idempotency-Key", key)
			}
			p := wantProblem(t, s.create(t, "badkey@example.com", headers...), http.StatusUnprocessableEntity)
			if len(p.Errors) != 1 || p.Errors[0].Location != "header.Idempotency-Key" {
				t.Errorf("bad fields %v", p.fields())
			}
		})
	}

	t.Run("the longest key is taken", func(t *testing.T) {
		t.Parallel()
		if r := s.create(t, "longkey@example.com", "Idempotency-Key", strings.Repeat("~", 255)); r.status != http.StatusCreated {
			t.Errorf("answer %d %s", r.status, r.body)
		}
	})
}

func TestKeysOlderThanADayAreRemovedInBatches(t *testing.T) {
	t.Parallel()
	s := start(t)
	if _, err := s.admin.Exec(t.Context(), `
		INSERT INTO idempotency_key (key, request_hash, status, location, response, created_at)
		SELECT 'k' || n, '', 201, '', '', now() - CASE WHEN n <= 1500 THEN interval '24 hours 1 minute' ELSE interval '23 hours 59 minutes' END
		FROM generate_series(1, 1600) AS n`); err != nil {
		t.Fatal(err)
	}
	for _, want := range []int64{1000, 500, 0} {
		if got, err := s.api.Expire(t.Context()); got != want || err != nil {
			t.Errorf("%d keys removed, error %v; want %d", got, err, want)
		}
	}
	if n := s.count(t, `SELECT count(*) FROM idempotency_key`); n != 100 {
		t.Errorf("%d keys are left", n)
	}
}
