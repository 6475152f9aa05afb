package api_test

import (
	"encoding/json"
	"fmt"
	"maps"
	"math"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"testing"
	"unicode/utf8"

	"pgregory.net/rapid"

	"github.com/sluicebox/sluicebox/internal/api"
	"github.com/sluicebox/sluicebox/internal/cli"
)

// contract is what /openapi.json promises.
type contract struct {
	Paths      map[string]map[string]operation
	Components struct{ Schemas map[string]schema }

	operations []operation // of all paths
}

type operation struct {
	OperationID string
	Parameters  []struct {
		Name, In string
		Required bool
		Schema   schema
	}
	RequestBody struct{ Content mediaTypes }
	Responses   map[string]struct{ Content mediaTypes }

	method, path string
}

// mediaTypes is the schema of each media type.
type mediaTypes map[string]struct{ Schema schema }

type schema struct {
	Ref                  string `json:"$ref"`
	Type                 any    // a name, or several
	Format, Pattern      string
	MinLength, MaxLength *int
	Minimum, Maximum     *float64
	Properties           map[string]schema
	Required             []string
	Items                *schema
}

func readContract(t *testing.T, text string) *contract {
	t.Helper()
	c := &contract{}
	if err := json.Unmarshal([]byte(text), c); err != nil {
		t.Fatal(err)
	}
	for _, path := range slices.Sorted(maps.Keys(c.Paths)) {
		for _, method := range slices.Sorted(maps.Keys(c.Paths[path])) {
			o := c.Paths[path][method]
			o.method, o.path = strings.ToUpper(method), path
			c.operations = append(c.operations, o)
		}
	}
	return c
}

// resolve follows a reference.
func (c *contract) resolve(s schema) schema {
	if name, found := strings.CutPrefix(s.Ref, "#/components/schemas/"); found {
		return c.Components.Schemas[name]
	}
	return s
}

// check says what a value lacks that its schema promises.
func (c *contract) check(value any, s schema) error {
	s = c.resolve(s)
	if value == nil && strings.Contains(fmt.Sprint(s.Type), "null") {
		return nil
	}
	switch value := value.(type) {
	case map[string]any:
		for _, name := range s.Required {
			if _, found := value[name]; !found {
				return fmt.Errorf("%s is missing", name)
			}
		}
		for name, member := range value {
			property, found := s.Properties[name]
			if !found {
				return fmt.Errorf("%s is not in the schema", name)
			}
			if err := c.check(member, property); err != nil {
				return fmt.Errorf("%s: %w", name, err)
			}
		}
		return nil
	case []any:
		if s.Items == nil {
			return fmt.Errorf("%v is an array", value)
		}
		for _, item := range value {
			if err := c.check(item, *s.Items); err != nil {
				return err
			}
		}
		return nil
	case string:
		n := utf8.RuneCountInString(value)
		if s.Type != "string" || s.MinLength != nil && n < *s.MinLength || s.MaxLength != nil && n > *s.MaxLength {
			return fmt.Errorf("%q is not a %v within its limits", value, s.Type)
		}
		return nil
	case float64:
		if s.Type != "number" && (s.Type != "integer" || value != math.Trunc(value)) {
			return fmt.Errorf("%v is not a %v", value, s.Type)
		}
		return nil
	default:
		return fmt.Errorf("%v is unexpected", value)
	}
}

// TestContract sends requests that the OpenAPI document allows, that it nearly allows, and that nobody in good faith would send. Each is
// answered as the document says, and never with an error of the service's own. `go test -run TestContract -rapid.checks=10000` looks longer.
func TestContract(t *testing.T) {
	t.Parallel()
	s := startOn(t, database(t), api.Config{Environment: "test", Keys: cli.NewCredential("the-key")})
	c := readContract(t, s.do(t, http.MethodGet, "/openapi.json", "").body)
	seen := seen{"id": {"1"}, "Idempotency-Key": {"one", "two"}}
	statuses := map[string]map[int]int{}
	rapid.Check(t, func(r *rapid.T) {
		for _, o := range c.operations {
			if statuses[o.OperationID] == nil {
				statuses[o.OperationID] = map[int]int{}
			}
			for range 5 { // rapid makes a hundred of these
				q := c.request(r, o, seen)
				answer := s.send(t, q)
				statuses[o.OperationID][answer.status]++
				if err := c.judge(o, q, answer); err != nil {
					r.Fatalf("%+v\nis answered with %d %s\n%v", q, answer.status, answer.body, err)
				}
				seen.learn(answer)
			}
		}
	})
	for id, want := range map[string][]int{ // else too little was tried
		"create-user": {201, 400, 401, 409, 413, 415, 422}, "get-user": {200, 401, 404, 422}, "list-users": {200, 401, 422},
	} {
		for _, status := range want {
			if statuses[id][status] == 0 {
				t.Errorf("%s was never answered with %d: %v", id, status, statuses[id])
			}
		}
	}
	if len(statuses) != 3 {
		t.Errorf("operations %v; name the answers of each that must be seen", slices.Collect(maps.Keys(statuses)))
	}
}

// judge says what is wrong with an answer.
func (c *contract) judge(o operation, q request, a reply) error {
	declared, found := o.Responses[strconv.Itoa(a.status)]
	media, _, _ := strings.Cut(a.header.Get("Content-Type"), ";")
	body, known := declared.Content[media]
	var value any
	switch err := json.Unmarshal([]byte(a.body), &value); {
	case a.status >= http.StatusInternalServerError:
		return fmt.Errorf("an error of the service's own")
	case !found || !known:
		return fmt.Errorf("the document has no such answer of %s", a.header.Get("Content-Type"))
	case err != nil:
		return err
	case a.status >= http.StatusBadRequest && media != "application/problem+json":
		return fmt.Errorf("an error as %s", media)
	case (a.status == http.StatusUnauthorized) == q.authorized:
		return fmt.Errorf("with the right key: %v", q.authorized)
	}
	if err := c.check(value, body.Schema); err != nil {
		return err
	}
	var p problem
	if err := json.Unmarshal([]byte(a.body), &p); a.status >= http.StatusBadRequest && (err != nil || p.Status != a.status || p.Detail == "") {
		return fmt.Errorf("problem %+v, error %w", p, err)
	}
	switch reused := slices.Equal(p.fields(), []string{"header.Idempotency-Key: was used for another request"}); {
	case !q.valid || !q.authorized, a.status < http.StatusBadRequest, reused, a.status == http.StatusNotFound, a.status == http.StatusConflict:
		return nil
	default:
		return fmt.Errorf("the document allows this request")
	}
}
