package api_test

import (
	"encoding/json"
	"maps"
	"slices"
	"strings"

	"pgregory.net/rapid"
)

// body draws a body, and says whether it is surely valid.
func (c *contract) body(t *rapid.T, s schema) (text string, valid bool) {
	s = c.resolve(s)
	type member struct{ name, value string }
	var members []member
	for _, name := range slices.Sorted(maps.Keys(s.Properties)) {
		members = append(members, member{name, quote(t, validText(t, s.Properties[name]))})
	}
	members = rapid.Permutation(members).Draw(t, "order")
	one := &members[rapid.IntRange(0, len(members)-1).Draw(t, "member")]
	fault := rapid.SampledFrom([]string{"", "", "", "", "long", "near", "hostile", "type", "missing", "twice", "name", "extra", "cut", "around", "none"}).Draw(t, "fault")
	switch fault {
	case "near":
		one.value = quote(t, near(t, s.Properties[one.name]))
	case "hostile":
		one.value = quote(t, hostile(t))
	case "type":
		one.value = rapid.SampledFrom([]string{"null", "1", "1e999999", "-0.0", "true", "[]", `{"a":{}}`, `["x"]`, `"\ud800"`, `"\u0000"`, "\"\xff\"", "nul"}).Draw(t, "value")
	case "missing":
		one.name, one.value = "", "1"
	case "twice":
		members = append(members, *one)
	case "name":
		one.name = strings.ToUpper(one.name)
	case "extra":
		members = append(members, member{hostile(t), "{}"})
	}
	parts := make([]string, len(members))
	for i, m := range members {
		parts[i] = quote(t, m.name) + ":" + m.value
	}
	text = "{" + strings.Join(parts, ",") + "}"
	switch fault {
	case "cut":
		text = text[:rapid.IntRange(0, len(text)-1).Draw(t, "length")]
	case "around":
		text = rapid.SampledFrom([]string{
			"\ufeff" + text, text + text, text + "x", "[" + text + "]", text + strings.Repeat(" ", 64<<10-len(text)),
		}).Draw(t, "body")
	case "long":
		text += strings.Repeat(" ", 64<<10)
	case "none":
		text = rapid.SampledFrom([]string{
			"", "null", `""`, "[]", "{", strings.Repeat("[", 20000), strings.Repeat(`{"a":`, 12000), "\x00", "email=ada%40example.com", "<x/>",
			strings.Repeat("9", 60000), string(rapid.SliceOf(rapid.Byte()).Draw(t, "bytes")),
		}).Draw(t, "body")
	}
	return text, fault == ""
}

func quote(t *rapid.T, text string) string {
	quoted, err := json.Marshal(text)
	if err != nil {
		t.Fatal(err)
	}
	return string(quoted)
}
