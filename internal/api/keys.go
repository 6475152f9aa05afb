package api

import (
	"crypto/sha256"
	"crypto/subtle"
	"encoding/hex"
	"errors"
	"net/http"
	"strings"
)

// digest is the SHA-256 of a bearer key. A slow hash would add nothing: keys are random, unlike passwords that people choose.
type digest [sha256.Size]byte

// digestPrefix marks a key that is given as its digest, so that who reads the setting can't use the service.
const digestPrefix = "sha256:"

// The errors of parseKey do not repeat the text, which is a secret.
var (
	errBadKey    = errors.New("a key is empty, or has a character that a bearer token cannot have")
	errBadDigest = errors.New("what begins with sha256: is the digest of a key, and has to go on with 64 hexadecimal digits")
)

// parseKey returns the digest of a key, which is given as it is or as its digest.
func parseKey(text string) (digest, error) {
	if digits, ok := strings.CutPrefix(text, digestPrefix); ok {
		bytes, err := hex.DecodeString(digits)
		if err != nil || len(bytes) != sha256.Size {
			return digest{}, errBadDigest
		}
		return digest(bytes), nil
	}
	if !isToken(text) {
		return digest{}, errBadKey
	}
	return sha256.Sum256([]byte(text)), nil
}

func parseKeys(texts []string) ([]digest, error) {
	keys := make([]digest, len(texts))
	for i, text := range texts {
		var err error
		if keys[i], err = parseKey(text); err != nil {
			return nil, err
		}
	}
	return keys, nil
}

// isToken tells whether s can follow "Bearer " in a header: printable ASCII without spaces.
func isToken(s string) bool {
	return s != "" && strings.IndexFunc(s, func(r rune) bool { return r <= ' ' || r > '~' }) < 0
}

// requireKey lets only requests with one of the keys pass; all of them if there are no keys. Digests are compared, each time all of
// them, so that the time it takes tells nothing about a key, not even its length.
func requireKey(keys []digest) func(http.Handler) http.Handler {
	return func(next http.Handler) http.Handler {
		if len(keys) == 0 {
			return next
		}
		return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			scheme, key, _ := strings.Cut(r.Header.Get("Authorization"), " ")
			given, match := sha256.Sum256([]byte(key)), 0
			for i, known := range keys {
				match = subtle.ConstantTimeSelect(subtle.ConstantTimeCompare(known[:], given[:]), i+1, match)
			}
			if match == 0 || !strings.EqualFold(scheme, "Bearer") {
				fail(w, r, errUnauthorized)
				return
			}
			recordOf(r.Context()).key = match
			next.ServeHTTP(w, r)
		})
	}
}
