package api_test

import (
	"cmp"
	"encoding/json"
	"io"
	"maps"
	"net/http"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"testing"
	"unicode"

	"pgregory.net/rapid"
)

// request is one for an operation.
type request struct {
	method, path, query, body string
	header                    http.Header
	authorized                bool // it has the key
	valid                     bool // the document allows it
}

func (s *service) send(t *testing.T, q request) reply {
	t.Helper()
	r, err := http.NewRequestWithContext(t.Context(), q.method, s.url+q.path, strings.NewReader(q.body))
	if err != nil {
		t.Fatal(err)
	}
	r.URL.RawQuery, r.Header = q.query, q.header
	response, err := http.DefaultClient.Do(r)
	if err != nil {
		t.Fatalf("%+v: %v", q, err)
	}
	defer func() { _ = response.Body.Close() }()
	body, err := io.ReadAll(response.Body)
	if err != nil {
		t.Fatal(err)
	}
	return reply{response.StatusCode, response.Header, string(body)}
}

// seen are values of parameters, by their names, that answers gave.
type seen map[string][]string

func (s seen) learn(a reply) {
	var body struct {
		ID         int64
		NextCursor string `json:"next_cursor"`
	}
	if json.Unmarshal([]byte(a.body), &body) == nil && body.ID > 0 {
		s["id"] = append(s["id"], strconv.FormatInt(body.ID, 10))
	}
	if body.NextCursor != "" {
		s["cursor"] = append(s["cursor"], body.NextCursor)
	}
}

// likely is true in three of four cases.
func likely(t *rapid.T, what string) bool { return rapid.IntRange(0, 3).Draw(t, what) > 0 }

// request draws a request for an operation. Each part of it is likely to be as the document says.
func (c *contract) request(t *rapid.T, o operation, seen seen) request {
	q := request{method: o.method, header: http.Header{}, authorized: rapid.IntRange(0, 9).Draw(t, "authorized") > 0, valid: true}
	q.header.Set("Authorization", "Bearer the-key")
	if !q.authorized {
		q.header.Set("Authorization", rapid.SampledFrom([]string{"", "Bearer", "Bearer other-key", "Basic the-key", "Bearer the-key,the-key"}).Draw(t, "key"))
	}
	path, query := o.path, []string{}
	for _, p := range o.Parameters {
		if !p.Required && rapid.Bool().Draw(t, "without "+p.Name) {
			continue
		}
		text, valid := parameter(t, p.Name, p.Schema, seen)
		switch p.In {
		case "path":
			path = strings.ReplaceAll(path, "{"+p.Name+"}", url.PathEscape(cmp.Or(text, " "))) // without it, it is another path
		case "query":
			query = append(query, url.QueryEscape(p.Name)+"="+url.QueryEscape(text))
		case "header":
			sendable := strings.TrimSpace(strings.Map(func(r rune) rune {
				if r < ' ' || r == 0x7f {
					return -1
				}
				return r
			}, text))
			valid = valid && sendable == text
			q.header.Set(p.Name, sendable)
		default:
			t.Fatalf("a parameter in %s", p.In)
		}
		q.valid = q.valid && valid
	}
	if !likely(t, "usual query") {
		query = append(query, rapid.SampledFrom([]string{"limit=%zz", "limit=1;cursor=2", "limit", "=", "&&", "cursor=%ff%fe", "limit=1&limit=2", "x[]=1"}).Draw(t, "query"))
		q.valid = false
	}
	q.path, q.query = path, strings.Join(query, "&")
	for _, media := range slices.Sorted(maps.Keys(o.RequestBody.Content)) {
		var valid bool
		q.body, valid = c.body(t, o.RequestBody.Content[media].Schema)
		q.header.Set("Content-Type", media)
		if rapid.IntRange(0, 9).Draw(t, "media type") == 0 {
			q.header.Set("Content-Type", rapid.SampledFrom([]string{"", "text/plain", "application/json/", media + "; charset", "a/b;c=" + strings.Repeat("d", 5000)}).Draw(t, "type"))
			valid = false
		}
		q.valid = q.valid && valid
	}
	if q.body == "" && !likely(t, "no body") {
		q.body, q.valid = "{}", false
	}
	for _, header := range []struct {
		name   string
		values []string
	}{
		{"Accept", []string{"", "*/*", "text/html", "application/cbor", "application/json;q=0", ";;q=x,,", strings.Repeat("a/b,", 1000)}},
		{"X-Request-Id", []string{"", "an-id", "not an id", "\xff"}},
		{"Accept-Encoding", []string{"", "gzip", "br;q=1, *;q=0"}},
	} {
		if value := rapid.SampledFrom(header.values).Draw(t, header.name); value != "" {
			q.header.Set(header.name, value)
		}
	}
	return q
}

// parameter draws the text of a parameter, and says whether it is surely valid.
func parameter(t *rapid.T, name string, s schema, seen seen) (text string, valid bool) {
	switch kind := rapid.SampledFrom([]string{"valid", "valid", "valid", "near", "hostile"}).Draw(t, name+" is"); {
	case kind == "hostile":
		return hostile(t), false
	case kind == "near":
		return near(t, s), false
	case len(seen[name]) > 0 && rapid.Bool().Draw(t, "seen"):
		return rapid.SampledFrom(seen[name]).Draw(t, name), true
	case name == "cursor": // only the service makes them
		return validText(t, s), false
	case s.Type == "integer":
		low, high := int64(1), int64(1<<62)
		if s.Minimum != nil {
			low = int64(*s.Minimum)
		}
		if s.Maximum != nil {
			high = int64(*s.Maximum)
		}
		return strconv.FormatInt(rapid.Int64Range(low, high).Draw(t, name), 10), true
	default:
		return validText(t, s), true
	}
}

// validText draws a valid text.
func validText(t *rapid.T, s schema) string {
	low, high := 1, 40
	if s.MinLength != nil {
		low = *s.MinLength
	}
	if s.MaxLength != nil {
		high = *s.MaxLength
	}
	switch {
	case s.Format == "email" && rapid.Bool().Draw(t, "one of few"):
		return rapid.SampledFrom([]string{"ada@example.com", "Ada@Example.com", "b@example.com"}).Draw(t, "email")
	case s.Format == "email":
		return rapid.StringMatching(`[a-z0-9.]{0,3}[a-z0-9]{5,20}@[a-z]{1,20}\.(com|org)`).Filter(func(s string) bool { return !strings.Contains(s, "..") && s[0] != '.' }).Draw(t, "email")
	case s.Pattern != "":
		return rapid.StringMatching(s.Pattern).Filter(func(s string) bool { return len(s) >= low && len(s) <= high }).Draw(t, "text")
	default:
		return rapid.StringOfN(rapid.RuneFrom(nil, unicode.Latin, unicode.Greek, unicode.Han), low, min(high, 200), -1).Draw(t, "text")
	}
}

// near draws what is at the limits of a schema, or just beyond them.
func near(t *rapid.T, s schema) string {
	texts := []string{"", " ", "0", "-1", "1.5", "1e3", "+1", "01", "0x1", "9223372036854775807", "9223372036854775808", "null", "true", "a@b", "a@", "A <a@b.c>"}
	for _, limit := range []*int{s.MinLength, s.MaxLength} {
		if limit != nil {
			texts = append(texts, strings.Repeat("x", *limit), strings.Repeat("x", *limit+1), strings.Repeat("ä", *limit), " "+strings.Repeat("x", *limit))
		}
	}
	for _, limit := range []*float64{s.Minimum, s.Maximum} {
		if limit != nil {
			texts = append(texts, strconv.Itoa(int(*limit)-1), strconv.Itoa(int(*limit)), strconv.Itoa(int(*limit)+1))
		}
	}
	return rapid.SampledFrom(texts).Draw(t, "near")
}

// hostile draws what finds its way into systems that trust their clients.
func hostile(t *rapid.T) string {
	if rapid.Bool().Draw(t, "any text") {
		return rapid.String().Draw(t, "text")
	}
	return rapid.SampledFrom([]string{
		"\x00", "a\x00b", "%00", "\xff\xfe", "\xed\xa0\x80", "..", "../../etc/passwd", "a/b", "' OR 1=1 --", "\\", "\r\nX-Other: 1", "\u202e\ufeff", "\u2028",
		"😀", "{{7*7}}", "%s%n", strings.Repeat("a", 3000), strings.Repeat("%", 500), strings.Repeat("1", 400), "1e99999", "NaN", "-0", "e\u0301",
	}).Draw(t, "hostile")
}
