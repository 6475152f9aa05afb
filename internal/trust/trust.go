// Package trust says what can be done when a database and this program do not accept each other's certificates.
package trust

import (
	"crypto/tls"
	"crypto/x509"
	"errors"
	"net"
	"net/http"
	"strings"
)

// Hint says what an operator can do about an error of TLS; empty: it is none. The parameters that it names are those of both URLs.
func Hint(err error) string {
	var authority x509.UnknownAuthorityError
	var name x509.HostnameError
	var invalid x509.CertificateInvalidError
	var plain tls.RecordHeaderError
	var operation *net.OpError
	switch {
	case errors.As(err, &authority):
		return "the server's certificate is of an authority that is not trusted here: name the file with the authority's certificate in sslrootcert of the URL"
	case errors.As(err, &name):
		return "the server's certificate is for other names than the one in the URL: use one of those, or give the server a certificate for this name"
	case errors.As(err, &invalid) && invalid.Reason == x509.Expired:
		return "the server's certificate has expired, or is not valid yet: renew it there, or correct the clock of this machine"
	case errors.As(err, &invalid):
		return "the server's certificate is not made for this use: give the server another one"
	case errors.As(err, &plain), errors.Is(err, http.ErrSchemeMismatch):
		return "the server does not speak TLS at this port: ClickHouse usually does at 9440 (clickhouse://) and 8443 (https://)"
	case errors.As(err, &operation) && operation.Op == "remote error": // what the server says before it hangs up
		if strings.Contains(operation.Error(), "certificate") {
			return "the server does not accept this program's certificate: name one that it trusts, with its key, in sslcert and sslkey of the URL"
		}
		return "the server refuses this program's TLS: compare its versions of TLS, and what it says in its log"
	case err != nil && strings.Contains(err.Error(), "server refused TLS connection"): // pgconn has no value for it
		return "Postgres has no TLS: set ssl = on there, with ssl_cert_file and ssl_key_file"
	}
	return ""
}
