// Package pgurl is what a URL of Postgres means beside what pgx reads in it: how a credential that has changed is taken up, and what is
// wrong with a URL, told without repeating it.
package pgurl

import (
	"errors"
	"io/fs"
	"slices"
	"strings"

	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/sluicebox/sluicebox/internal/loopback"
)

// Renew gives a connection that is about to be opened user, password and certificates as url, and the files that it names, have them now.
//
// A url that can't be read, being written just now, or that names another server or database changes nothing: the sessions of one pool
// must not be on two servers, nor a password be sent to a server that it is not for.
func Renew(config *pgconn.Config, url string) {
	now, err := pgconn.ParseConfig(url)
	if err != nil || now.Database != config.Database || !slices.Equal(servers(now), servers(config)) {
		return
	}
	config.User, config.Password = now.User, now.Password
	config.TLSConfig, config.Fallbacks = now.TLSConfig, now.Fallbacks
}

// server is one of those that a connection may go to.
type server struct {
	host      string
	port      uint16
	encrypted bool
}

func servers(config *pgconn.Config) []server {
	all := []server{{config.Host, config.Port, config.TLSConfig != nil}}
	for _, f := range config.Fallbacks {
		all = append(all, server{f.Host, f.Port, f.TLSConfig != nil})
	}
	return all
}

// Problem says what is wrong with a URL, in words that hold nothing of it but the names of files; nil: nothing is.
func Problem(url string) error {
	_, err := pgxpool.ParseConfig(url)
	if err == nil {
		return nil
	}
	// pgx's own words repeat the URL, without a password as far as it can be told apart from the rest.
	if file := new(fs.PathError); errors.As(err, &file) {
		return errors.New(file.Error() + "; correct sslrootcert, sslcert or sslkey in it, or the rights of that file")
	}
	if parse := new(pgconn.ParseConfigError); errors.As(err, &parse) && strings.Contains(parse.Error(), "failed to configure TLS (") {
		return errors.New(parse.Unwrap().Error() + "; correct sslmode, sslrootcert, sslcert or sslkey in it")
	}
	return errors.New("not a Postgres URL such as postgres://user:password@host:5432/database")
}

// Plain is a server to which a connection may go over a network and not be encrypted; empty: there is none.
func Plain(url string) string {
	config, err := pgconn.ParseConfig(url)
	if err != nil {
		return ""
	}
	for _, s := range servers(config) {
		if !s.encrypted && !strings.HasPrefix(s.host, "/") && !loopback.Host(s.host) {
			return s.host
		}
	}
	return ""
}
