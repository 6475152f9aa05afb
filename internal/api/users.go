package api

import (
	"context"
	"encoding/base64"
	"net/http"
	"reflect"
	"strconv"
	"strings"
	"time"

	"github.com/danielgtaylor/huma/v2"
)

// User is a user as clients see it.
type User struct {
	ID        int64     `json:"id" example:"42"`
	Email     string    `json:"email" format:"email" example:"ada@example.com"`
	FirstName string    `json:"first_name" example:"Ada"`
	LastName  string    `json:"last_name" example:"Lovelace"`
	CreatedAt time.Time `json:"created_at"`
	UpdatedAt time.Time `json:"updated_at"`
}

type createInput struct {
	Key         string `header:"Idempotency-Key" minLength:"1" maxLength:"255" pattern:"^[!-~]+$" doc:"Any text of the client's choice, unique to this request. A request that is sent again with the same key, within 24 hours, gets the first answer and creates nothing."`
	TraceParent string `header:"traceparent" doc:"W3C trace context; the event keeps its trace. One that is not valid is ignored."`
	RawBody     []byte `contentType:"application/json"`
}

// Resolve finds what huma takes for a header that is not there, or for one.
func (in *createInput) Resolve(ctx huma.Context) []error {
	var values []string
	ctx.EachHeader(func(name, value string) {
		if strings.EqualFold(name, "Idempotency-Key") {
			values = append(values, value)
		}
	})
	switch {
	case len(values) > 1:
		return []error{field("header.Idempotency-Key", "is there twice")}
	case len(values) == 1 && values[0] == "":
		return []error{field("header.Idempotency-Key", "is blank")}
	default:
		return nil
	}
}

type createOutput struct {
	Status      int
	ContentType string `header:"Content-Type" hidden:"true"`
	Location    string `header:"Location" doc:"Path of the user."`
	Replayed    string `header:"Idempotency-Replayed" doc:"true if this is the answer to an earlier request with the same Idempotency-Key."`
	Body        []byte
}

type getInput struct {
	ID int64 `path:"id" minimum:"1"`
}

type getOutput struct {
	Body User
}

type listInput struct {
	Cursor string `query:"cursor" maxLength:"64" doc:"The next_cursor of the page before; without it, the first page."`
	Limit  int    `query:"limit" minimum:"1" maximum:"100" default:"20" doc:"Most users of the page."`
}

type listOutput struct {
	Body struct {
		Items      []User `json:"items" nullable:"false"`
		NextCursor string `json:"next_cursor,omitempty" doc:"Cursor of the next page. The last page has none."`
	}
}

func (a *API) registerUsers(document huma.API) {
	// The body is checked by decodeUser; huma only describes it.
	content := func(body reflect.Type) map[string]*huma.MediaType {
		return map[string]*huma.MediaType{"application/json": {Schema: document.OpenAPI().Components.Schemas.Schema(body, true, "")}}
	}
	huma.Register(document, huma.Operation{
		OperationID: "create-user", Method: http.MethodPost, Path: "/users", Summary: "Create a user",
		Description:   "Creates a user, and in the same transaction the event `user has been created`.",
		DefaultStatus: http.StatusCreated, SkipValidateBody: true, MaxBodyBytes: -1, BodyReadTimeout: -1, // see readBody
		Responses: map[string]*huma.Response{"201": {Description: "The user is created, and its event will be delivered.", Content: content(reflect.TypeFor[User]())}},
		Errors: []int{
			http.StatusBadRequest, http.StatusUnauthorized, http.StatusRequestTimeout, http.StatusConflict,
			http.StatusRequestEntityTooLarge, http.StatusUnsupportedMediaType, http.StatusTooManyRequests, http.StatusServiceUnavailable,
		},
	}, answering(a.create))
	document.OpenAPI().Paths["/users"].Post.RequestBody.Content = content(reflect.TypeFor[NewUser]())

	huma.Register(document, huma.Operation{
		OperationID: "get-user", Method: http.MethodGet, Path: "/users/{id}", Summary: "Get a user",
		Errors: []int{http.StatusUnauthorized, http.StatusNotFound, http.StatusTooManyRequests, http.StatusServiceUnavailable},
	}, answering(a.get))
	huma.Register(document, huma.Operation{
		OperationID: "list-users", Method: http.MethodGet, Path: "/users", Summary: "List users, oldest first",
		RejectUnknownQueryParameters: true,
		Errors:                       []int{http.StatusUnauthorized, http.StatusTooManyRequests, http.StatusServiceUnavailable},
	}, answering(a.list))
}

func (a *API) create(ctx context.Context, in *createInput) (*createOutput, error) {
	user, err := decodeUser(in.RawBody)
	if err != nil {
		return nil, err
	}
	first, err := a.createUser(ctx, user, traceContext(ctx, in.TraceParent), idempotency{key: in.Key, hash: requestHash(in.RawBody)})
	if err != nil {
		return nil, err
	}
	out := &createOutput{Status: first.status, ContentType: "application/json", Location: first.location, Body: first.body}
	if first.replayed {
		out.Replayed = "true"
	}
	return out, nil
}

func (a *API) get(ctx context.Context, in *getInput) (*getOutput, error) {
	user, err := a.user(ctx, in.ID)
	return &getOutput{Body: user}, err
}

func (a *API) list(ctx context.Context, in *listInput) (*listOutput, error) {
	after, ok := decodeCursor(in.Cursor)
	if !ok {
		return nil, invalid{field("query.cursor", "is not a cursor that this service gave")}
	}
	users, err := a.users(ctx, after, in.Limit+1) // one more tells whether there is a next page
	if err != nil {
		return nil, err
	}
	out := &listOutput{}
	if len(users) > in.Limit {
		users = users[:in.Limit]
		out.Body.NextCursor = encodeCursor(users[len(users)-1].ID)
	}
	out.Body.Items = users
	return out, nil
}

// cursorVersion lets a later release tell its cursors from these.
const cursorVersion = "1:"

func encodeCursor(id int64) string {
	return base64.RawURLEncoding.EncodeToString([]byte(cursorVersion + strconv.FormatInt(id, 10)))
}

// decodeCursor returns the id that a page begins after.
func decodeCursor(cursor string) (id int64, ok bool) {
	if cursor == "" {
		return 0, true
	}
	text, err := base64.RawURLEncoding.DecodeString(cursor)
	if err != nil {
		return 0, false
	}
	number, found := strings.CutPrefix(string(text), cursorVersion)
	id, err = strconv.ParseInt(number, 10, 64)
	return id, found && err == nil && encodeCursor(id) == cursor
}
