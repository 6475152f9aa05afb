package api

import (
	"bytes"
	"cmp"
	"crypto/sha256"
	_ "embed" // the page and its style
	"encoding/base64"
	"encoding/json"
	"fmt"
	"html/template"
	"maps"
	"net/http"
	"slices"
	"strings"

	"github.com/danielgtaylor/huma/v2"
)

//go:embed docs.html
var docsPage string

//go:embed docs.css
var docsStyle string

// docs is what the page for readers of the API shows. Huma's own pages load scripts from other sites; this one is plain HTML, made of the
// same document once.
type docs struct {
	Title, Version string
	Locked         bool // a key is needed
	Style          template.CSS
	Operations     []docsOperation
	Schemas        []docsSchema
}

type docsOperation struct {
	ID, Method, Path, Summary, Description string
	Parameters                             []docsField
	Body                                   *docsType
	Example                                string // of the body
	Answers                                []docsAnswer
}

type docsAnswer struct {
	ID, Status, Description string
	Headers                 []docsField
	Body                    *docsType
}

type docsSchema struct {
	ID, Name string
	Fields   []docsField
}

// docsType is how a type is shown; Link is the section that tells more, or empty.
type docsType struct{ Type, Link string }

type docsField struct {
	docsType

	Name, In, Description, Limits string
	Required                      bool
}

// serveDocs returns a handler that serves the document as a page.
func serveDocs(document *huma.OpenAPI) (http.HandlerFunc, error) {
	page, err := template.New("docs").Parse(docsPage)
	if err != nil {
		return nil, fmt.Errorf("parse the page of the API: %w", err)
	}
	var text bytes.Buffer
	if err := page.Execute(&text, describe(document)); err != nil {
		return nil, fmt.Errorf("write the page of the API: %w", err)
	}
	style := sha256.Sum256([]byte(docsStyle))
	policy := "default-src 'none'; style-src 'sha256-" + base64.StdEncoding.EncodeToString(style[:]) +
		"'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
	return func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Type", "text/html; charset=utf-8")
		w.Header().Set("Content-Security-Policy", policy)
		_, _ = w.Write(text.Bytes()) // a client that went away
	}, nil
}

func describe(document *huma.OpenAPI) docs {
	d := docs{
		Title: document.Info.Title, Version: document.Info.Version, Locked: len(document.Security) > 0,
		Style: template.CSS(docsStyle), // not escaped: it is our own file
	}
	schemas := document.Components.Schemas
	for _, path := range slices.Sorted(maps.Keys(document.Paths)) {
		item := document.Paths[path]
		for _, operation := range []*huma.Operation{item.Get, item.Post, item.Put, item.Patch, item.Delete} {
			if operation != nil {
				d.Operations = append(d.Operations, describeOperation(operation, schemas))
			}
		}
	}
	for _, name := range slices.Sorted(maps.Keys(schemas.Map())) {
		schema := schemas.Map()[name]
		section := docsSchema{ID: "schema-" + name, Name: name}
		for _, property := range slices.Sorted(maps.Keys(schema.Properties)) {
			field := describeField(property, schema.Properties[property])
			field.Required = slices.Contains(schema.Required, property)
			section.Fields = append(section.Fields, field)
		}
		d.Schemas = append(d.Schemas, section)
	}
	return d
}

func describeOperation(o *huma.Operation, schemas huma.Registry) docsOperation {
	d := docsOperation{ID: o.OperationID, Method: o.Method, Path: o.Path, Summary: o.Summary, Description: o.Description}
	for _, parameter := range o.Parameters {
		field := describeField(parameter.Name, parameter.Schema)
		field.In, field.Required = parameter.In, parameter.Required
		field.Description = cmp.Or(parameter.Description, field.Description)
		d.Parameters = append(d.Parameters, field)
	}
	if o.RequestBody != nil {
		d.Body, d.Example = describeBody(o.RequestBody.Content), example(o.RequestBody.Content, schemas)
	}
	for _, status := range slices.Sorted(maps.Keys(o.Responses)) {
		response := o.Responses[status]
		answer := docsAnswer{
			ID: o.OperationID + "-" + status, Status: status, Description: response.Description, Body: describeBody(response.Content),
		}
		for _, name := range slices.Sorted(maps.Keys(response.Headers)) {
			answer.Headers = append(answer.Headers, describeField(name, response.Headers[name].Schema))
		}
		d.Answers = append(d.Answers, answer)
	}
	return d
}

func describeField(name string, schema *huma.Schema) docsField {
	return docsField{docsType: describeType(schema), Name: name, Description: schema.Description, Limits: limits(schema)}
}

// describeBody tells the type of a body; all of them have one media type.
func describeBody(content map[string]*huma.MediaType) *docsType {
	for _, media := range content {
		t := describeType(media.Schema)
		return &t
	}
	return nil
}

func describeType(schema *huma.Schema) docsType {
	switch {
	case schema.Ref != "":
		name := schema.Ref[strings.LastIndex(schema.Ref, "/")+1:]
		return docsType{Type: name, Link: "schema-" + name}
	case schema.Items != nil:
		item := describeType(schema.Items)
		return docsType{Type: "array of " + item.Type, Link: item.Link}
	case schema.Format != "":
		return docsType{Type: schema.Type + " (" + schema.Format + ")"}
	default:
		return docsType{Type: cmp.Or(schema.Type, "any")}
	}
}

// limits says in words what a value is held to.
func limits(s *huma.Schema) string {
	var all []string
	if s.Minimum != nil {
		all = append(all, fmt.Sprintf("At least %v.", *s.Minimum))
	}
	if s.Maximum != nil {
		all = append(all, fmt.Sprintf("At most %v.", *s.Maximum))
	}
	if s.MinLength != nil {
		all = append(all, fmt.Sprintf("At least %d characters.", *s.MinLength))
	}
	if s.MaxLength != nil {
		all = append(all, fmt.Sprintf("At most %d characters.", *s.MaxLength))
	}
	if s.Pattern != "" {
		all = append(all, "Matches "+s.Pattern)
	}
	if s.Default != nil {
		all = append(all, fmt.Sprintf("Default: %v.", s.Default))
	}
	return strings.Join(all, " ")
}

// example is a body made of the examples of its properties; empty unless each of them has one.
func example(content map[string]*huma.MediaType, schemas huma.Registry) string {
	media := content["application/json"]
	if media == nil || media.Schema.Ref == "" {
		return ""
	}
	values := map[string]any{}
	for name, property := range schemas.SchemaFromRef(media.Schema.Ref).Properties {
		if len(property.Examples) == 0 {
			return ""
		}
		values[name] = property.Examples[0]
	}
	text, err := json.MarshalIndent(values, "", "  ")
	if err != nil {
		return ""
	}
	return string(text)
}
