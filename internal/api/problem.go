package api

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"net"
	"net/http"
	"os"
	"strconv"
	"strings"

	"github.com/danielgtaylor/huma/v2"
	"github.com/jackc/pgx/v5/pgconn"
)

// What can be wrong with a request. Everything else is our own fault or that of Postgres.
var (
	errNoRoute      = errors.New("there is nothing at this path")
	errMethod       = errors.New("this path does not have this method")
	errUnauthorized = errors.New("a valid key is needed: Authorization: Bearer …")
	errNotLocal     = errors.New("without keys this service answers to localhost, 127.0.0.1 and [::1] only; a proxy in front of it must ask for one of these names")
	errMediaType    = errors.New("the body has to be application/json")
	errSlowBody     = errors.New("the body did not arrive in time")
	errNotFound     = errors.New("there is no such user")
	errEmailTaken   = errors.New("a user with this e-mail exists")
	errKeyReused    = errors.New("was used for another request")
)

// malformed is a body that is not JSON.
type malformed struct{ reason string }

func (e malformed) Error() string { return e.reason }

// invalid lists every bad field of a request.
type invalid []*huma.ErrorDetail

func (e invalid) Error() string {
	fields := make([]string, len(e))
	for i, detail := range e {
		fields[i] = detail.Location + ": " + detail.Message
	}
	return strings.Join(fields, "; ")
}

// unready is a database that is not as it must be.
type unready struct{ reason, hint string }

func (e unready) Error() string { return e.reason }

// statusClientGone is what log readers know from nginx: the client did not wait for the answer.
const statusClientGone = 499

// retryAfter, in seconds, is long enough to restart a Postgres and short enough for a user who is waiting.
const retryAfter = 5

// answer maps an error to the answer that the client gets. It is the only place that does so. Nothing of an unexpected error
// reaches the client; the log has it under the id of the request.
func answer(err error) *huma.ErrorModel {
	var fields invalid
	var tooLarge *http.MaxBytesError
	var state unready
	var full refused
	switch {
	case errors.Is(err, errNoRoute):
		return problem(http.StatusNotFound, errNoRoute.Error())
	case errors.Is(err, errMethod):
		return problem(http.StatusMethodNotAllowed, errMethod.Error())
	case errors.Is(err, errUnauthorized):
		return problem(http.StatusUnauthorized, errUnauthorized.Error())
	case errors.Is(err, errNotLocal):
		return problem(http.StatusMisdirectedRequest, errNotLocal.Error())
	case errors.Is(err, errMediaType):
		return problem(http.StatusUnsupportedMediaType, errMediaType.Error())
	case errors.Is(err, errSlowBody):
		return problem(http.StatusRequestTimeout, errSlowBody.Error())
	case errors.Is(err, errNotFound):
		return problem(http.StatusNotFound, errNotFound.Error())
	case errors.Is(err, errEmailTaken):
		return problem(http.StatusConflict, errEmailTaken.Error())
	case errors.Is(err, errKeyReused):
		return problem(http.StatusUnprocessableEntity, "the request is not valid", field("header.Idempotency-Key", errKeyReused.Error()))
	case errors.As(err, &fields):
		return problem(http.StatusUnprocessableEntity, "the request is not valid", fields...)
	case errors.As(err, new(malformed)):
		return problem(http.StatusBadRequest, err.Error())
	case errors.As(err, &tooLarge):
		return problem(http.StatusRequestEntityTooLarge, fmt.Sprintf("the body is longer than %d bytes", tooLarge.Limit))
	case errors.As(err, &full):
		return problem(full.status, full.reason)
	case errors.As(err, &state):
		return problem(http.StatusServiceUnavailable, state.reason)
	case errors.Is(err, context.Canceled):
		return problem(statusClientGone, "the client went away")
	case unavailable(err):
		return problem(http.StatusServiceUnavailable, "the database is not available; try again")
	default:
		return problem(http.StatusInternalServerError, "something went wrong here; the log has it under the X-Request-Id of this answer")
	}
}

func problem(status int, detail string, fields ...*huma.ErrorDetail) *huma.ErrorModel {
	return &huma.ErrorModel{Status: status, Title: http.StatusText(status), Detail: detail, Errors: fields}
}

func field(location, message string) *huma.ErrorDetail {
	return &huma.ErrorDetail{Location: location, Message: message}
}

// unavailable tells whether an error of Postgres passes by itself: the same request may succeed later.
func unavailable(err error) bool {
	if refused, ok := errors.AsType[*pgconn.PgError](err); ok {
		switch refused.Code[:min(2, len(refused.Code))] { // a pooler may give none
		case "08", "53", "57", "58", "28", "3D": // connection, resources, shutdown, system, and an operator at work on roles or databases
			return true
		default:
			return refused.Code == "25006" || refused.Code == "40001" || refused.Code == "40P01" // a standby; lost to another transaction
		}
	}
	var network net.Error
	return errors.Is(err, context.DeadlineExceeded) || errors.As(err, &network) || errors.As(err, new(*pgconn.ConnectError)) ||
		errors.Is(err, io.ErrUnexpectedEOF) || errors.Is(err, io.EOF) || errors.Is(err, net.ErrClosed) || pgconn.SafeToRetry(err)
}

// headers returns the headers that belong to an answer.
func headers(p *huma.ErrorModel, err error) http.Header {
	h := http.Header{}
	var full refused
	switch {
	case errors.As(err, &full):
		h.Set("Retry-After", strconv.Itoa(full.after))
	case p.Status == http.StatusServiceUnavailable:
		h.Set("Retry-After", strconv.Itoa(retryAfter))
	case p.Status == http.StatusUnauthorized:
		h.Set("WWW-Authenticate", "Bearer")
	}
	return h
}

// fail answers an error outside of huma.
func fail(w http.ResponseWriter, r *http.Request, err error) {
	p := answer(err)
	note(r.Context(), p, err)
	maps.Copy(w.Header(), headers(p, err))
	w.Header().Set("Content-Type", "application/problem+json")
	w.WriteHeader(p.Status)
	_ = json.NewEncoder(w).Encode(p) // a client that went away
}

// answering returns a handler for huma whose errors are answered like all others.
func answering[I, O any](handle func(context.Context, *I) (*O, error)) func(context.Context, *I) (*O, error) {
	return func(ctx context.Context, in *I) (*O, error) {
		out, err := handle(ctx, in)
		if err != nil {
			p := answer(err)
			note(ctx, p, err)
			return nil, huma.ErrorWithHeaders(p, headers(p, err))
		}
		return out, nil
	}
}

// withoutValues takes what the client sent out of the problems that huma finds: it knows that, and the rest of the way back, with
// its caches and logs, need not.
func withoutValues(_ huma.Context, _ string, body any) (any, error) {
	if p, ok := body.(*huma.ErrorModel); ok {
		for _, detail := range p.Errors {
			detail.Value = nil
		}
	}
	return body, nil
}

// bodyError gives errors of reading a body their meaning.
func bodyError(err error) error {
	switch {
	case errors.As(err, new(*http.MaxBytesError)):
		return err
	case errors.Is(err, os.ErrDeadlineExceeded):
		return errSlowBody
	default:
		return malformed{"the body ends early"}
	}
}
