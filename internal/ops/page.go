package ops

import (
	"bytes"
	"context"
	"crypto/sha256"
	_ "embed"
	"encoding/base64"
	"errors"
	"fmt"
	"html/template"
	"net/http"
	"strconv"
	"time"

	"github.com/go-chi/chi/v5"
	"github.com/rs/zerolog"

	"github.com/sluicebox/sluicebox/internal/cli"
	"github.com/sluicebox/sluicebox/internal/ledger"
	"github.com/sluicebox/sluicebox/internal/loopback"
)

var (
	//go:embed page.html
	pageHTML string
	//go:embed page.css
	pageCSS string
	//go:embed page.js
	pageJS string
)

// PageConfig says what the status page is of.
type PageConfig struct {
	Slot  string
	Build cli.Build
	// Loopback says that only this machine reaches the page. Whoever reaches it may then have rows delivered again, as they could with
	// `cdc quarantine retry`; otherwise the page only shows, since it asks nobody for a password.
	Loopback bool
}

// Page is the status page. It shows what the daemon knows, and what the ledger told within the last seconds; a Postgres or ClickHouse
// that hangs does not keep anybody from seeing it.
//
// The server draws all of it, so that it works without JavaScript. With it, a script fetches the changing part every two seconds and
// changes what differs. Fetching is preferred over a stream of events: a viewer who is gone costs nothing at once, a hidden tab asks
// nothing, and no connection is exempt from the time-outs of the admin address.
type Page struct {
	metrics  *Metrics
	config   PageConfig
	reader   reader
	template *template.Template
	policy   string
	log      zerolog.Logger
}

// NewPage makes the status page of a daemon.
func NewPage(metrics *Metrics, books Books, config PageConfig, log zerolog.Logger) *Page {
	hash := func(text string) string {
		sum := sha256.Sum256([]byte(text))
		return "'sha256-" + base64.StdEncoding.EncodeToString(sum[:]) + "'"
	}
	page := template.New("page").Funcs(template.FuncMap{
		"style":  func() template.CSS { return template.CSS(pageCSS) },
		"script": func() template.JS { return template.JS(pageJS) },
	})
	return &Page{
		metrics: metrics, config: config, reader: reader{books: books}, template: template.Must(page.Parse(pageHTML)), log: log,
		policy: "default-src 'none'; style-src " + hash(pageCSS) + "; script-src " + hash(pageJS) +
			"; connect-src 'self'; img-src data:; form-action 'self'; base-uri 'none'; frame-ancestors 'none'",
	}
}

// Handler serves the admin address: that of [Metrics.Handler] and
//
//	/                  the status page
//	/now               the part of it that changes
//	/quarantine/retry  POST of an id: have it delivered again
func (p *Page) Handler() http.Handler {
	r := chi.NewRouter()
	r.Mount("/", p.metrics.Handler())
	r.Group(func(r chi.Router) {
		r.Use(p.protect, http.NewCrossOriginProtection().Handler)
		r.Get("/", func(w http.ResponseWriter, r *http.Request) { p.show(w, r, "page", http.StatusOK, "") })
		r.Get("/now", func(w http.ResponseWriter, r *http.Request) { p.show(w, r, "main", http.StatusOK, "") })
		r.Post("/quarantine/retry", p.retry)
	})
	return r
}

// protect sets the headers of the page, and refuses requests for names that are not this machine's when only it is served.
func (p *Page) protect(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		h := w.Header()
		h.Set("Content-Security-Policy", p.policy)
		h.Set("X-Content-Type-Options", "nosniff")
		h.Set("X-Frame-Options", "DENY")
		h.Set("Referrer-Policy", "same-origin") // not less: browsers then send "null" for the origin of a form
		h.Set("Cross-Origin-Opener-Policy", "same-origin")
		h.Set("Cross-Origin-Resource-Policy", "same-origin")
		h.Set("Cache-Control", "no-store")
		if p.config.Loopback && !loopback.Host(r.Host) {
			say(w, http.StatusMisdirectedRequest, "this page answers to localhost, 127.0.0.1 and [::1] only, "+
				"because CDC_ADMIN_ADDR is an address of this machine alone; a proxy in front of it must ask for one of these names")
			return
		}
		next.ServeHTTP(w, r)
	})
}

func (p *Page) show(w http.ResponseWriter, r *http.Request, part string, status int, notice string) {
	v := p.view(p.observe(r))
	v.Notice = notice
	var page bytes.Buffer // so that an error is not the end of half a page
	if err := p.template.ExecuteTemplate(&page, part, v); err != nil {
		p.log.Error().Err(err).Msg("the status page could not be drawn")
		say(w, http.StatusInternalServerError, "the page could not be drawn; the daemon's log says why")
		return
	}
	w.Header().Set("Content-Type", "text/html; charset=utf-8")
	w.WriteHeader(status)
	_, _ = page.WriteTo(w) // the client is gone if this fails
}

// retry has a row in quarantine delivered again, and shows the page.
func (p *Page) retry(w http.ResponseWriter, r *http.Request) {
	const mostBytes, timeout = 4096, 5 * time.Second
	r.Body = http.MaxBytesReader(w, r.Body, mostBytes)
	id, err := strconv.ParseInt(r.PostFormValue("id"), 10, 64)
	if err != nil {
		p.show(w, r, "page", http.StatusBadRequest, "Nothing was requested: the form has no id of an event.")
		return
	}
	command := fmt.Sprintf("`cdc quarantine retry %d`", id)
	if !p.config.Loopback {
		p.show(w, r, "page", http.StatusForbidden, "Nothing was requested: this page may not change anything. Use "+command+".")
		return
	}
	ctx, cancel := context.WithTimeout(r.Context(), timeout)
	defer cancel()
	err = p.reader.books.Retry(ctx, []int64{id})
	p.reader.expire()
	if unknown := new(ledger.UnknownError); errors.As(err, &unknown) {
		p.show(w, r, "page", http.StatusNotFound, fmt.Sprintf("Event %d is not in quarantine any more: it was delivered, or never was there.", id))
		return
	}
	if err != nil {
		p.log.Error().Err(err).Int64("id", id).Msg("a redelivery could not be requested on the status page")
		p.show(w, r, "page", http.StatusServiceUnavailable, "Nothing was requested, or it is not known whether it was: "+cli.OneLine(err.Error(), 300)+
			". Try again, or use "+command+".")
		return
	}
	p.log.Info().Int64("id", id).Msg("redelivery requested on the status page")
	http.Redirect(w, r, "/#quarantine", http.StatusSeeOther)
}
