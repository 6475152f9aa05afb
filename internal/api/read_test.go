package api_test

import (
	"encoding/base64"
	"encoding/json"
	"fmt"
	"net/http"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/sluicebox/sluicebox/internal/api"
)

func TestGetUser(t *testing.T) {
	t.Parallel()
	s := start(t)
	for path, status := range map[string]int{
		"/users/1":                    http.StatusNotFound,
		"/users/9223372036854775807":  http.StatusNotFound,
		"/users/0":                    http.StatusUnprocessableEntity,
		"/users/-1":                   http.StatusUnprocessableEntity,
		"/users/x":                    http.StatusUnprocessableEntity,
		"/users/92233720368547758070": http.StatusUnprocessableEntity,
		"/users/1/posts":              http.StatusNotFound,
	} {
		wantProblem(t, s.do(t, http.MethodGet, path, ""), status)
	}
}

func TestListUsers(t *testing.T) {
	t.Parallel()
	s := start(t)
	type page struct {
		Items      []api.User
		NextCursor string `json:"next_cursor"`
	}
	list := func(t *testing.T, query string) (p page, body string) {
		t.Helper()
		r := s.do(t, http.MethodGet, "/users"+query, "")
		if err := json.Unmarshal([]byte(r.body), &p); err != nil || r.status != http.StatusOK {
			t.Fatalf("answer %d %s, error %v", r.status, r.body, err)
		}
		return p, r.body
	}

	if _, body := list(t, ""); body != "{\"items\":[]}\n" {
		t.Errorf("no users are %s", body)
	}
	if _, err := s.admin.Exec(t.Context(), `
		INSERT INTO users (email, first_name, last_name) SELECT n || '@example.com', 'a', 'b' FROM generate_series(1, 45) AS n`); err != nil {
		t.Fatal(err)
	}

	t.Run("pages hold each user once, oldest first, also while users come and go", func(t *testing.T) {
		var got, want []int64
		var sizes []int
		for cursor, query := "", "?limit=20"; ; query = "?limit=20&cursor=" + cursor {
			p, _ := list(t, query)
			for _, user := range p.Items {
				got = append(got, user.ID)
			}
			sizes = append(sizes, len(p.Items))
			if cursor = p.NextCursor; cursor == "" {
				break
			}
			if _, err := s.admin.Exec(t.Context(), `DELETE FROM users WHERE id = (SELECT min(id) FROM users)`); err != nil {
				t.Fatal(err)
			}
		}
		for id := int64(1); id <= 45; id++ {
			want = append(want, id)
		}
		if diff := cmp.Diff(want, got); diff != "" || !cmp.Equal(sizes, []int{20, 20, 5}) {
			t.Errorf("pages of %v; ids (-want +got):\n%s", sizes, diff)
		}
	})

	t.Run("a last page that is full has no next page", func(t *testing.T) {
		if p, _ := list(t, "?limit=43"); len(p.Items) != 43 || p.NextCursor != "" {
			t.Errorf("%d users, next %q", len(p.Items), p.NextCursor)
		}
	})

	t.Run("a page has 20 users by default", func(t *testing.T) {
		if p, _ := list(t, ""); len(p.Items) != 20 {
			t.Errorf("%d users", len(p.Items))
		}
	})

	encode := base64.RawURLEncoding.EncodeToString
	for _, query := range []string{
		"limit=0", "limit=101", "limit=-1", "limit=x", "cursor=x", "cursor=" + encode([]byte("2:1")), "cursor=" + encode([]byte("1:01")),
		"cursor=" + encode([]byte("1:x")), "cursor=%00", "page=2",
	} {
		t.Run("?"+query+" is refused", func(t *testing.T) {
			p := wantProblem(t, s.do(t, http.MethodGet, "/users?"+query, ""), http.StatusUnprocessableEntity)
			if len(p.Errors) != 1 || p.Errors[0].Location == "" {
				t.Errorf("bad fields %v", p.fields())
			}
		})
	}
}

func TestOpenAPI(t *testing.T) {
	t.Parallel()
	s := start(t, "key")
	r := s.do(t, http.MethodGet, "/openapi.json", "")
	var document struct {
		OpenAPI    string
		Paths      map[string]map[string]struct{ RequestBody, Responses any }
		Components struct{ Schemas map[string]any }
		Security   []any
	}
	if err := json.Unmarshal([]byte(r.body), &document); err != nil {
		t.Fatal(err)
	}
	if document.OpenAPI != "3.1.0" || document.Paths["/users"]["post"].RequestBody == nil || document.Paths["/users/{id}"]["get"].Responses == nil ||
		document.Components.Schemas["NewUser"] == nil || len(document.Security) != 1 {
		t.Errorf("document %s", r.body)
	}
	want := map[string]any{"required": true, "content": map[string]any{
		"application/json": map[string]any{"schema": map[string]any{"$ref": "#/components/schemas/NewUser"}},
	}}
	if diff := cmp.Diff(want, document.Paths["/users"]["post"].RequestBody); diff != "" {
		t.Errorf("body of POST /users (-want +got):\n%s", diff)
	}
	created := fmt.Sprint(document.Paths["/users"]["post"].Responses.(map[string]any)["201"])
	for _, part := range []string{"Location", "Idempotency-Replayed", "#/components/schemas/User"} {
		if !strings.Contains(created, part) {
			t.Errorf("answer 201 lacks %s: %s", part, created)
		}
	}
}
