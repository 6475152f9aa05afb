package api_test

import (
	"bufio"
	"encoding/json"
	"fmt"
	"net"
	"net/http"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/sluicebox/sluicebox/internal/api"
)

func TestCreateUser(t *testing.T) {
	t.Parallel()
	s := start(t)

	t.Run("a created user's event is in the outbox", func(t *testing.T) {
		t.Parallel()
		trace := "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"
		r := s.do(t, http.MethodPost, "/users", `{"last_name":"Ēōß <&>","email":"Event@Example.com","first_name":"😀 \"x\""}`, "traceparent", trace)
		var user api.User
		if err := json.Unmarshal([]byte(r.body), &user); err != nil || r.status != http.StatusCreated {
			t.Fatalf("answer %d %s, error %v", r.status, r.body, err)
		}
		var content map[string]any
		var kind, environment, gotTrace string
		var at time.Time
		var processed bool
		if err := s.admin.QueryRow(t.Context(), `
			SELECT event_type, environment, event_context, event_date_time, trace_context, processed FROM event_outbox
			WHERE event_context->>'email' = 'Event@Example.com'`).Scan(&kind, &environment, &content, &at, &gotTrace, &processed); err != nil {
			t.Fatal(err)
		}
		want := map[string]any{"email": "Event@Example.com", "first_name": `😀 "x"`, "last_name": "Ēōß <&>"}
		if diff := cmp.Diff(want, content); diff != "" {
			t.Errorf("event_context (-want +got):\n%s", diff)
		}
		if kind != "user has been created" || environment != "test" || gotTrace != trace || processed || !at.Equal(user.CreatedAt) {
			t.Errorf("event %q of %q at %s, trace %q, processed %v", kind, environment, at, gotTrace, processed)
		}
	})

	t.Run("the Location leads to the user of the answer", func(t *testing.T) {
		t.Parallel()
		r := s.create(t, "location@example.com")
		var members map[string]any
		if err := json.Unmarshal([]byte(r.body), &members); err != nil || r.status != http.StatusCreated {
			t.Fatalf("answer %d %s, error %v", r.status, r.body, err)
		}
		if got, want := r.header.Get("Location"), fmt.Sprintf("/users/%v", members["id"]); got != want {
			t.Errorf("location %q, want %q", got, want)
		}
		for _, name := range []string{"id", "email", "first_name", "last_name", "created_at", "updated_at"} {
			if _, ok := members[name]; !ok {
				t.Errorf("the answer has no %s: %s", name, r.body)
			}
		}
		if again := s.do(t, http.MethodGet, r.header.Get("Location"), ""); again.status != http.StatusOK || again.body != r.body {
			t.Errorf("answer %d %s, want %s", again.status, again.body, r.body)
		}
	})

	t.Run("an e-mail that exists in another letter case is refused and leaves no event", func(t *testing.T) {
		t.Parallel()
		if r := s.create(t, "case@example.com"); r.status != http.StatusCreated {
			t.Fatalf("answer %d %s", r.status, r.body)
		}
		for _, email := range []string{"case@example.com", "CASE@Example.COM", " Case@example.com "} {
			wantProblem(t, s.create(t, email), http.StatusConflict)
		}
		if n := s.count(t, `SELECT count(*) FROM event_outbox WHERE lower(event_context->>'email') = 'case@example.com'`); n != 1 {
			t.Errorf("%d events", n)
		}
	})

	t.Run("50 parallel requests for one e-mail create one user and one event", func(t *testing.T) {
		t.Parallel()
		statuses := inParallel(50, func(int) int { return s.create(t, "race@example.com").status })
		if statuses[http.StatusCreated] != 1 || statuses[http.StatusConflict] != 49 {
			t.Errorf("answers %v", statuses)
		}
		if n := s.count(t, `SELECT count(*) FROM event_outbox WHERE event_context->>'email' = 'race@example.com'`); n != 1 {
			t.Errorf("%d events", n)
		}
	})

	t.Run("spaces around values are removed", func(t *testing.T) {
		t.Parallel()
		r := s.do(t, http.MethodPost, "/users", `{"email":" trim@example.com\t","first_name":"\n Ada","last_name":"Love lace "}`)
		n := s.count(t, `SELECT count(*) FROM event_outbox
			WHERE event_context = '{"email": "trim@example.com", "first_name": "Ada", "last_name": "Love lace"}'`)
		if r.status != http.StatusCreated || n != 1 {
			t.Errorf("answer %d %s, %d events", r.status, r.body, n)
		}
	})

	t.Run("a traceparent that is not valid is ignored", func(t *testing.T) {
		t.Parallel()
		r := s.create(t, "trace@example.com", "traceparent", "00-nonsense")
		n := s.count(t, `SELECT count(*) FROM event_outbox WHERE event_context->>'email' = 'trace@example.com' AND trace_context IS NULL`)
		if r.status != http.StatusCreated || n != 1 {
			t.Errorf("answer %d %s, %d events", r.status, r.body, n)
		}
	})
}

// inParallel calls do n times at once and counts what it returns.
func inParallel[T comparable](n int, do func(i int) T) map[T]int {
	var mu sync.Mutex
	var calls sync.WaitGroup
	results, begin := map[T]int{}, make(chan struct{})
	for i := range n {
		calls.Go(func() {
			<-begin
			result := do(i)
			mu.Lock()
			defer mu.Unlock()
			results[result]++
		})
	}
	close(begin)
	calls.Wait()
	return results
}

// TestAFailureLeavesNothing has Postgres refuse the event, or the commit, with an idempotency key and without.
func TestAFailureLeavesNothing(t *testing.T) {
	t.Parallel()
	for what, sql := range map[string]string{
		"the event": `ALTER TABLE event_outbox RENAME TO elsewhere`,
		"the commit": `CREATE FUNCTION refuse() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN RAISE EXCEPTION 'not event_outbox'; END $$;
			CREATE CONSTRAINT TRIGGER late AFTER INSERT ON users DEFERRABLE INITIALLY DEFERRED FOR EACH ROW EXECUTE FUNCTION refuse()`,
	} {
		for with, header := range map[string][]string{"without a key": nil, "with a key": {"Idempotency-Key", "k"}} {
			t.Run(what+" "+with, func(t *testing.T) {
				t.Parallel()
				s := start(t)
				if _, err := s.admin.Exec(t.Context(), sql); err != nil {
					t.Fatal(err)
				}
				p := wantProblem(t, s.create(t, "nobody@example.com", header...), http.StatusInternalServerError)
				if strings.Contains(p.Detail, "event_outbox") {
					t.Errorf("the answer tells about our insides: %s", p.Detail)
				}
				if n := s.count(t, `SELECT (SELECT count(*) FROM users) + (SELECT count(*) FROM idempotency_key)`); n != 0 {
					t.Errorf("%d rows are left", n)
				}
			})
		}
	}
}

func TestEveryBadFieldIsNamed(t *testing.T) {
	t.Parallel()
	s := start(t)
	long := strings.Repeat("ä", 201)
	for name, test := range map[string]struct {
		body string
		want []string
	}{
		"all missing":     {`{}`, []string{"body.email: is missing", "body.first_name: is missing", "body.last_name: is missing"}},
		"all of it wrong": {`{"email":"x","first_name":" ","last_name":"a\u0000b","admin":true,"EMAIL":"a@b.c"}`, []string{"body.email: is not an e-mail address", "body.first_name: is blank", "body.last_name: has a control character", "body.EMAIL: is not a known field", "body.admin: is not a known field"}},
		"half a pair":     {`{"email":"a\ud83e@b.c","first_name":"A\ud83eB","last_name":"L"}`, []string{"body.email: has half of a surrogate pair, or the character U+FFFD", "body.first_name: has half of a surrogate pair, or the character U+FFFD"}},
		"wrong types":     {`{"email":1,"first_name":null,"last_name":["x"]}`, []string{"body.email: is not a string", "body.first_name: is not a string", "body.last_name: is not a string"}},
		"too long":        {`{"email":"` + strings.Repeat("a", 250) + `@b.cd","first_name":"` + long + `","last_name":"` + long + `"}`, []string{"body.email: has more than 254 characters", "body.first_name: has more than 200 characters", "body.last_name: has more than 200 characters"}},
		"a name twice":    {`{"email":"a@b.c","email":"x","first_name":"a","last_name":"b"}`, []string{"body.email: is there twice", "body.email: is not an e-mail address"}},
		"NUL in e-mail":   {`{"email":"a\u0000@b.c","first_name":"a","last_name":"b"}`, []string{"body.email: has a control character"}},
		"name in e-mail":  {`{"email":"Ada <a@b.c>","first_name":"a","last_name":"b"}`, []string{"body.email: is not an e-mail address"}},
		"two e-mails":     {`{"email":"a@b.c, d@e.f","first_name":"a","last_name":"b"}`, []string{"body.email: is not an e-mail address"}},
		"an array":        {`[]`, []string{"body: is not an object"}},
		"null":            {`null`, []string{"body: is not an object"}},
		"a string":        {`"email"`, []string{"body: is not an object"}},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			p := wantProblem(t, s.do(t, http.MethodPost, "/users", test.body), http.StatusUnprocessableEntity)
			if diff := cmp.Diff(test.want, p.fields()); diff != "" {
				t.Errorf("bad fields (-want +got):\n%s", diff)
			}
		})
	}
	t.Cleanup(func() {
		if n := s.count(t, `SELECT (SELECT count(*) FROM users) + (SELECT count(*) FROM event_outbox)`); n != 0 {
			t.Errorf("%d rows are left", n)
		}
	})
}

func TestTheLongestValuesAreTaken(t *testing.T) {
	t.Parallel()
	s := start(t)
	body := fmt.Sprintf(`{"email":"%s@b.cd","first_name":%q,"last_name":%q}`, strings.Repeat("a", 249), strings.Repeat("ä", 200), strings.Repeat("😀", 200))
	if r := s.do(t, http.MethodPost, "/users", body); r.status != http.StatusCreated {
		t.Errorf("answer %d %s", r.status, r.body)
	}
}

func TestBadBodies(t *testing.T) {
	t.Parallel()
	s := start(t)
	valid := userJSON(t, "a@example.com")
	for name, test := range map[string]struct {
		body, contentType string
		status            int
	}{
		"no JSON":             {`{"email":`, "application/json", http.StatusBadRequest},
		"more than one value": {valid + valid, "application/json", http.StatusBadRequest},
		"not UTF-8":           {"{\"email\":\"\xff\"}", "application/json", http.StatusBadRequest},
		"empty":               {"", "application/json", http.StatusBadRequest},
		"too large":           {`{"email":"` + strings.Repeat("x", 64<<10) + `"}`, "application/json", http.StatusRequestEntityTooLarge},
		"a form":              {"email=a@example.com", "application/x-www-form-urlencoded", http.StatusUnsupportedMediaType},
		"plain text":          {valid, "text/plain", http.StatusUnsupportedMediaType},
		"no type":             {valid, "-", http.StatusUnsupportedMediaType},
		"a type of nonsense":  {valid, "application/json/;", http.StatusUnsupportedMediaType},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			wantProblem(t, s.do(t, http.MethodPost, "/users", test.body, "Content-Type", test.contentType), test.status)
		})
	}
	t.Run("a character set is no other type, and the greatest length is taken", func(t *testing.T) {
		t.Parallel()
		body := valid + strings.Repeat(" ", 64<<10-len(valid))
		if r := s.do(t, http.MethodPost, "/users", body, "Content-Type", "application/json; charset=utf-8"); r.status != http.StatusCreated {
			t.Errorf("answer %d %s", r.status, r.body)
		}
	})
	t.Run("a body that breaks off", func(t *testing.T) {
		t.Parallel()
		conn, err := new(net.Dialer).DialContext(t.Context(), "tcp", strings.TrimPrefix(s.url, "http://"))
		if err != nil {
			t.Fatal(err)
		}
		defer func() { _ = conn.Close() }()
		_, _ = fmt.Fprint(conn, "POST /users HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nContent-Length: 100\r\n\r\n{")
		if err := conn.(*net.TCPConn).CloseWrite(); err != nil {
			t.Fatal(err)
		}
		response, err := http.ReadResponse(bufio.NewReader(conn), nil)
		if err != nil || response.StatusCode != http.StatusBadRequest {
			t.Fatalf("answer %v, error %v", response, err)
		}
		_ = response.Body.Close()
	})
}
