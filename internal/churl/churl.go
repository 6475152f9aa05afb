// Package churl is what a URL of ClickHouse means beside what clickhouse-go reads in it: certificates, by the parameters that Postgres's URL
// has for them, and how a credential that has changed is taken up.
//
//	clickhouse://user:password@host:9440/database?secure=true&sslrootcert=ca.pem&sslcert=client.pem&sslkey=client.key
package churl

import (
	"cmp"
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"os"
	"slices"
	"strings"

	"github.com/ClickHouse/clickhouse-go/v2"
)

// Parse reads a URL. With secure=true, or https, the server's certificate is verified, against the authorities of sslrootcert, or those of
// the system if there is none. An error repeats nothing of the URL but the names of files.
func Parse(url string) (*clickhouse.Options, error) {
	if strings.HasPrefix(url, "https://") && !strings.Contains(url, "secure=") { // clickhouse-go wants it said twice
		separator := "?"
		if strings.Contains(url, separator) {
			separator = "&"
		}
		url += separator + "secure=true"
	}
	options, err := clickhouse.ParseDSN(url)
	if err != nil {
		return nil, errors.New("not a ClickHouse URL such as clickhouse://user:password@host:9000/database")
	}
	root, cert, key := take(options, "sslrootcert"), take(options, "sslcert"), take(options, "sslkey")
	switch {
	case options.TLS == nil && root+cert+key != "":
		return nil, errors.New("sslrootcert, sslcert and sslkey need secure=true, and the port of ClickHouse for TLS")
	case (cert == "") != (key == ""):
		return nil, errors.New("sslcert and sslkey need each other")
	}
	if root != "" {
		if options.TLS.RootCAs, err = authorities(root); err != nil {
			return nil, err
		}
	}
	if cert != "" {
		pair, err := tls.LoadX509KeyPair(cert, key)
		if err != nil {
			return nil, fmt.Errorf("sslcert and sslkey: %w", err)
		}
		options.TLS.Certificates = []tls.Certificate{pair}
	}
	return options, nil
}

// take removes a parameter, which clickhouse-go has read as a setting of queries.
func take(options *clickhouse.Options, name string) string {
	value, given := options.Settings[name]
	delete(options.Settings, name)
	if !given {
		return ""
	}
	return fmt.Sprint(value)
}

func authorities(path string) (*x509.CertPool, error) {
	content, err := os.ReadFile(path)
	if err != nil {
		return nil, fmt.Errorf("sslrootcert: %w", err)
	}
	pool := x509.NewCertPool()
	if !pool.AppendCertsFromPEM(content) {
		return nil, fmt.Errorf("sslrootcert: %s holds no certificate in PEM", path)
	}
	return pool, nil
}

// Follow has each new connection opened with user, password and certificates as url has them then.
//
// A url that can't be read, being written just now, or that names other servers or another database changes nothing: the connections of one
// pool must not be to two servers, nor a password be sent to a server that it is not for.
func Follow(options *clickhouse.Options, url func() string) {
	options.DialStrategy = func(ctx context.Context, id int, opened *clickhouse.Options, dial clickhouse.Dial) (clickhouse.DialResult, error) {
		now, err := Parse(url())
		if err != nil || now.Auth.Database != opened.Auth.Database || !slices.Equal(now.Addr, opened.Addr) || (now.TLS == nil) != (opened.TLS == nil) {
			return clickhouse.DefaultDialStrategy(ctx, id, opened, dial)
		}
		own := *opened
		own.Auth.Username, own.Auth.Password = cmp.Or(now.Auth.Username, "default"), now.Auth.Password
		own.TLS = now.TLS
		return clickhouse.DefaultDialStrategy(ctx, id, &own, dial)
	}
}
