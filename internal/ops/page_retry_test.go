package ops_test

import (
	"errors"
	"net/http"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/sluicebox/sluicebox/internal/ledger"
)

func TestPageRetry(t *testing.T) {
	t.Parallel()
	const path, form, same = "/quarantine/retry", "id=7", "Sec-Fetch-Site=same-origin"
	for name, c := range map[string]struct {
		remote  bool // others than this machine reach the page
		err     error
		body    string
		headers []string
		status  int
		text    string
	}{
		"requests the redelivery":                           {body: form, headers: []string{same}, status: http.StatusSeeOther},
		"takes a browser that tells its origin only":        {body: form, headers: []string{"Origin=http://localhost:8081"}, status: http.StatusSeeOther},
		"refuses a form on another site":                    {body: form, headers: []string{"Sec-Fetch-Site=cross-site"}, status: http.StatusForbidden},
		"refuses one on another port of this machine":       {body: form, headers: []string{"Sec-Fetch-Site=same-site"}, status: http.StatusForbidden},
		"refuses another origin":                            {body: form, headers: []string{"Origin=http://localhost:9999"}, status: http.StatusForbidden},
		"refuses another name of this machine (rebinding)":  {body: form, headers: []string{same, "Host=evil.example:8081"}, status: http.StatusMisdirectedRequest, text: "localhost"},
		"refuses when others than this machine reach it":    {remote: true, body: form, headers: []string{same}, status: http.StatusForbidden, text: "cdc quarantine retry 7"},
		"says that the form is wrong":                       {body: "id=seven", headers: []string{same}, status: http.StatusBadRequest, text: "no id"},
		"refuses a body that is too large":                  {body: "x=" + strings.Repeat("x", 5000) + "&id=7", headers: []string{same}, status: http.StatusBadRequest},
		"says that a row is not in quarantine any more":     {err: &ledger.UnknownError{IDs: []int64{7}}, body: form, headers: []string{same}, status: http.StatusNotFound, text: "Event 7 is not in quarantine"},
		"says that Postgres failed, and what else there is": {err: errors.New("connection refused"), body: form, headers: []string{same}, status: http.StatusServiceUnavailable, text: "connection refused. Try again, or use `cdc quarantine retry 7`"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			synctest.Test(t, func(t *testing.T) {
				b := healthy()
				page := pageOf(streaming(), b, !c.remote)
				b.err = c.err
				answer := request(t, page, http.MethodPost, path, c.body, c.headers...)
				if answer.Code != c.status {
					t.Errorf("status %d, want %d", answer.Code, c.status)
				}
				has(t, answer.Body.String(), c.text)
				if done := len(b.retried) > 0; done != (c.status == http.StatusSeeOther) {
					t.Errorf("requested: %v", b.retried)
				}
			})
		})
	}
	t.Run("shows at once what became of it", func(t *testing.T) {
		t.Parallel()
		synctest.Test(t, func(t *testing.T) {
			b := healthy()
			b.quarantine = []ledger.Quarantined{{ID: 7, EventType: "order placed", Reason: "r"}}
			page := pageOf(streaming(), b, true)
			has(t, shown(t, page), `<form method="post" action="/quarantine/retry"><input type="hidden" name="id" value="7">`)
			now := time.Now()
			b.quarantine = []ledger.Quarantined{{ID: 7, EventType: "order placed", Reason: "r", RequestedAt: &now}}
			request(t, page, http.MethodPost, path, form, same)
			text := shown(t, page)
			has(t, text, "<td>retry requested</td>")
			if strings.Contains(text, "<form") {
				t.Error("it can be requested again")
			}
		})
	})
	t.Run("is not offered when others than this machine reach the page, whatever they call it", func(t *testing.T) {
		t.Parallel()
		synctest.Test(t, func(t *testing.T) {
			b := healthy()
			b.quarantine = []ledger.Quarantined{{ID: 7, EventType: "order placed", Reason: "r"}}
			answer := request(t, pageOf(streaming(), b, false), http.MethodGet, "/", "", "Host=cdc.internal:8081")
			has(t, answer.Body.String(), "<td>held</td>", "cdc quarantine retry ID", "because others than this machine reach it")
			if answer.Code != http.StatusOK || strings.Contains(answer.Body.String(), "<form") {
				t.Errorf("status %d, or there is a form", answer.Code)
			}
		})
	})
	t.Run("the page answers to each name of this machine, and to no other", func(t *testing.T) {
		t.Parallel()
		synctest.Test(t, func(t *testing.T) {
			page := pageOf(streaming(), healthy(), true)
			for host, status := range map[string]int{
				"localhost": 200, "localhost:1": 200, "127.0.0.1:8081": 200, "127.1.2.3:80": 200, "[::1]:8081": 200, "[::1]": 200, "::1": 200,
				"example.com": 421, "localhost.example.com:8081": 421, "192.168.0.1:8081": 421, "": 421,
			} {
				if answer := request(t, page, http.MethodGet, "/now", "", "Host="+host); answer.Code != status {
					t.Errorf("%q: status %d, want %d", host, answer.Code, status)
				}
			}
			if answer := request(t, page, http.MethodGet, "/metrics", "", "Host=cdc.internal"); answer.Code != http.StatusOK {
				t.Errorf("/metrics under another name: %d", answer.Code)
			}
		})
	})
}
