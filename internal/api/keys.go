package api

import (
	"crypto/sha256"
	"crypto/subtle"
	"encoding/hex"
	"errors"
	"net/http"
	"strings"
	"sync"
	"time"

	"github.com/rs/zerolog"

	"github.com/sluicebox/sluicebox/internal/cli"
	"github.com/sluicebox/sluicebox/internal/loopback"
)

// keysAge is for how long keys are taken for what their file has.
const keysAge = time.Second

// digest is the SHA-256 of a bearer key. A slow hash would add nothing: keys are random, unlike passwords that people choose.
type digest [sha256.Size]byte

// digestPrefix marks a key that is given as its digest, so that who reads the setting can't use the service.
const digestPrefix = "sha256:"

// The errors of parseKey do not repeat the text, which is a secret.
var (
	errBadKey      = errors.New("a key is empty, or has a character that a bearer token cannot have")
	errEmptyDigest = errors.New("the digest after sha256: is that of an empty text, and not of a key")
	errBadDigest   = errors.New("what begins with sha256: is the digest of a key, and has to go on with 64 hexadecimal digits")
)

// parseKey returns the digest of a key, which is given as it is or as its digest.
func parseKey(text string) (digest, error) {
	if digits, ok := strings.CutPrefix(text, digestPrefix); ok {
		bytes, err := hex.DecodeString(digits)
		if err != nil || len(bytes) != sha256.Size {
			return digest{}, errBadDigest
		}
		if digest(bytes) == sha256.Sum256(nil) { // of a variable that was not set; a request without a key would have it
			return digest{}, errEmptyDigest
		}
		return digest(bytes), nil
	}
	if !isToken(text) {
		return digest{}, errBadKey
	}
	return sha256.Sum256([]byte(text)), nil
}

// parseKeys reads keys that are separated by commas; an empty text has none.
func parseKeys(text string) ([]digest, error) {
	if text == "" {
		return nil, nil
	}
	var keys []digest
	for one := range strings.SplitSeq(text, ",") {
		key, err := parseKey(one)
		if err != nil {
			return nil, err
		}
		keys = append(keys, key)
	}
	return keys, nil
}

// isToken tells whether s can follow "Bearer " in a header: printable ASCII without spaces.
func isToken(s string) bool {
	return s != "" && strings.IndexFunc(s, func(r rune) bool { return r <= ' ' || r > '~' }) < 0
}

// keyring are the keys as the setting has them. One that is read from a file is read again while it is used.
type keyring struct {
	setting cli.Credential
	log     zerolog.Logger

	mu     sync.Mutex
	at     time.Time // when it was read last
	text   string
	keys   []digest
	failed bool // it can't be read any more, which was told
}

// newKeyring reads the keys.
func newKeyring(setting cli.Credential, log zerolog.Logger) (*keyring, error) {
	r := &keyring{setting: setting, log: log, at: time.Now(), text: setting.Now()}
	var err error
	r.keys, err = parseKeys(r.text)
	return r, err
}

// open says whether there were no keys at the start, and anybody may use the service. No change of the file opens or closes it.
func (r *keyring) open() bool { return len(r.keys) == 0 }

// now are the keys, as they were keysAge ago at most. A file that can't be read, or has no list of keys, leaves them as they were.
func (r *keyring) now() []digest {
	r.mu.Lock()
	defer r.mu.Unlock()
	now := time.Now()
	if now.Sub(r.at) < keysAge {
		return r.keys
	}
	r.at = now
	text, err := r.setting.Read()
	if err == nil && text == r.text {
		r.failed = false
		return r.keys
	}
	var keys []digest
	if err == nil {
		keys, err = parseKeys(text)
	}
	if err != nil {
		if !r.failed {
			r.failed = true
			r.log.Error().Err(err).Str("hint", "correct the file; the keys of before count until then").Msg("API_KEYS_FILE can't be read any more")
		}
		return r.keys
	}
	r.text, r.keys, r.failed = text, keys, false
	r.log.Info().Int("keys", len(keys)).Msg("API_KEYS_FILE has changed: its keys count from now on")
	return r.keys
}

// requireKey lets only requests with one of the keys pass; all of them if there are no keys, which is for this machine alone. Digests are
// compared, each time all of them, so that the time it takes tells nothing about a key, not even its length.
func requireKey(ring *keyring) func(http.Handler) http.Handler {
	return func(next http.Handler) http.Handler {
		if ring.open() {
			return localOnly(next)
		}
		return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			scheme, key, _ := strings.Cut(r.Header.Get("Authorization"), " ")
			given, match := digest(sha256.Sum256([]byte(key))), 0
			for i, known := range ring.now() {
				match = subtle.ConstantTimeSelect(subtle.ConstantTimeCompare(known[:], given[:]), i+1, match)
			}
			if match == 0 || !strings.EqualFold(scheme, "Bearer") {
				fail(w, r, errUnauthorized)
				return
			}
			rec := recordOf(r.Context())
			rec.key, rec.digest = match, given
			next.ServeHTTP(w, r)
		})
	}
}

// localOnly refuses requests that ask for another name than this machine's.
func localOnly(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if !loopback.Host(r.Host) {
			fail(w, r, errNotLocal)
			return
		}
		next.ServeHTTP(w, r)
	})
}
