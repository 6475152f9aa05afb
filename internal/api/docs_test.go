package api_test

import (
	"cmp"
	"crypto/sha256"
	"encoding/base64"
	"encoding/json"
	"net/http"
	"regexp"
	"slices"
	"strings"
	"testing"

	"golang.org/x/net/html"

	"github.com/sluicebox/sluicebox/internal/api"
	"github.com/sluicebox/sluicebox/internal/cli"
)

func TestDocs(t *testing.T) {
	t.Parallel()
	s := startOn(t, nowhere, api.Config{Environment: "test", Keys: cli.NewCredential("key")})
	r := s.do(t, http.MethodGet, "/docs", "")
	if r.status != http.StatusOK || r.header.Get("Content-Type") != "text/html; charset=utf-8" {
		t.Fatalf("answer %d %s", r.status, r.header.Get("Content-Type"))
	}
	root, err := html.Parse(strings.NewReader(r.body))
	if err != nil {
		t.Fatal(err)
	}
	text := map[string]string{} // of sections, by id
	for node := range root.Descendants() {
		if id := attribute(node, "id"); id != "" {
			text[id] = content(node)
		}
	}

	t.Run("every operation is there, with its parameters and answers, and every schema with its properties", func(t *testing.T) {
		t.Parallel()
		var document struct {
			Paths map[string]map[string]struct {
				OperationID, Summary, Description string
				Parameters                        []struct{ Name string }
				Responses                         map[string]struct {
					Headers map[string]struct{ Schema struct{ Description string } }
				}
			}
			Components struct {
				Schemas map[string]struct {
					Properties map[string]struct{ Description string }
				}
			}
		}
		if err := json.Unmarshal([]byte(s.do(t, http.MethodGet, "/openapi.json", "").body), &document); err != nil {
			t.Fatal(err)
		}
		want := map[string][]string{}
		for path, operations := range document.Paths {
			for method, o := range operations {
				want[o.OperationID] = append(want[o.OperationID], strings.ToUpper(method)+path, o.Summary, o.Description)
				for _, parameter := range o.Parameters {
					want[o.OperationID] = append(want[o.OperationID], parameter.Name)
				}
				for status, response := range o.Responses {
					answer := o.OperationID + "-" + status
					want[answer] = append(want[answer], status)
					for name, header := range response.Headers {
						want[answer] = append(want[answer], name, cmp.Or(header.Schema.Description, "no description"))
					}
				}
			}
		}
		for name, schema := range document.Components.Schemas {
			for property, about := range schema.Properties {
				want["schema-"+name] = append(want["schema-"+name], property, about.Description)
			}
		}
		for id, parts := range want {
			for _, part := range parts {
				if !strings.Contains(text[id], part) {
					t.Errorf("section %q lacks %q:\n%s", id, part, text[id])
				}
			}
		}
		for _, part := range []string{`"email": "ada@example.com"`, "At most 254 characters.", "Default: 20.", "array of User", "Authorization: Bearer"} {
			if !strings.Contains(content(root), part) {
				t.Errorf("the page lacks %q", part)
			}
		}
	})

	t.Run("it asks nobody else for anything, runs nothing, and every link leads somewhere", func(t *testing.T) {
		t.Parallel()
		for node := range root.Descendants() {
			if slices.Contains([]string{"script", "link", "img", "iframe", "form", "base"}, node.Data) {
				t.Errorf("there is a <%s>", node.Data)
			}
			for _, a := range node.Attr {
				_, section := text[strings.TrimPrefix(a.Val, "#")]
				known := a.Val == "/openapi.json" || strings.HasPrefix(a.Val, "#") && section
				if a.Key == "href" && !known || a.Key == "src" || a.Key == "style" || strings.HasPrefix(a.Key, "on") {
					t.Errorf("<%s %s=%q>", node.Data, a.Key, a.Val)
				}
			}
		}
		style := regexp.MustCompile(`(?s)<style>(.*)</style>`).FindStringSubmatch(r.body)
		if len(style) == 0 || strings.Contains(style[1], "url(") || strings.Contains(style[1], "@import") {
			t.Fatalf("style %q", style)
		}
		hash := sha256.Sum256([]byte(style[1]))
		want := "default-src 'none'; style-src 'sha256-" + base64.StdEncoding.EncodeToString(hash[:]) + "'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
		if got := r.header.Get("Content-Security-Policy"); got != want {
			t.Errorf("policy %q, want %q", got, want)
		}
	})

	t.Run("a service without keys does not ask for one", func(t *testing.T) {
		t.Parallel()
		open := startOn(t, nowhere, api.Config{Environment: "test"})
		if r := open.do(t, http.MethodGet, "/docs", ""); strings.Contains(r.body, "Bearer") {
			t.Error("it tells of a key")
		}
	})
}

func attribute(node *html.Node, key string) string {
	for _, a := range node.Attr {
		if a.Key == key {
			return a.Val
		}
	}
	return ""
}

// content is the text in a node.
func content(node *html.Node) string {
	var text strings.Builder
	for n := range node.Descendants() {
		if n.Type == html.TextNode {
			text.WriteString(n.Data)
		}
	}
	return text.String()
}
